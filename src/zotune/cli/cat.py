"""`zotune cat`: a run's config."""

from __future__ import annotations

import sys
from typing import Any

from zotune.cli.frame import Json, RunArgument, Session, execute
from zotune.run import RunPaths


def command(run: RunArgument, as_json: Json = False) -> None:
    """Print the config of a run on stdout: YAML that `zotune train --config` takes, or JSON."""

    def body(session: Session) -> dict[str, Any]:
        from zotune.resolve import read_file

        return read_file(RunPaths(run).check().config)[0]

    def show(session: Session, values: dict[str, Any]) -> None:
        from zotune.yaml12 import dump

        sys.stdout.write(dump(values))

    execute(body, as_json, show)
