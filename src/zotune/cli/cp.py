"""`zotune cp`: a copy of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from zotune.cli.frame import Json, RunArgument, Session, execute
from zotune.run import RunPaths


def command(
    run: RunArgument,
    to: Annotated[Path, typer.Argument(metavar="TO", help="Folder of the copy.", show_default=False)],
    snapshots: Annotated[bool, typer.Option(help="Copy the snapshots too; they only shorten a resume.")] = True,
    as_json: Json = False,
) -> None:
    """Copy a run, also one at work. The copy resumes, replays and branches like the run itself."""

    def body(session: Session) -> dict[str, Any]:
        RunPaths(run).check()
        from zotune.history.copy import copy

        return copy(run, to, snapshots)

    execute(body, as_json)
