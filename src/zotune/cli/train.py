"""`zotune train`: start a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from zotune.cli.frame import Json, Session, execute
from zotune.cli.options import METHOD_FLAGS, values_of, with_options
from zotune.cli.summary import show_run
from zotune.config import OPTIONS


@with_options([*OPTIONS, *METHOD_FLAGS])
def command(
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="YAML file with the same names; flags win.", show_default=False),
    ] = None,
    as_json: Json = False,
    **given: Any,
) -> None:
    """Fine-tune a model. Options come from --config and from flags; flags win. Several processes: under torchrun."""

    def body(session: Session) -> dict[str, Any]:
        from zotune.presets import with_preset
        from zotune.resolve import resolve

        resolved = with_preset(resolve(values_of(given), config)).absolute()
        session.run = resolved.output_dir
        from zotune.distributed.launch import begin
        from zotune.track import tracked

        with session.joined() as group, tracked(resolved, session.watch, session.leads) as watch:
            return begin(resolved, watch, group)

    execute(body, as_json, show_run)
