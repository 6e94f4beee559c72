"""`zotune pool`: a run whose forwards are done by workers that come and go."""

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
    workers: Annotated[int, typer.Option("--workers", help="Workers without a GPU.", min=0)] = 1,
    gpu_workers: Annotated[int, typer.Option("--gpu-workers", help="Workers with a GPU each.", min=0)] = 0,
    address: Annotated[
        str | None, typer.Option("--address", help="Ray cluster (auto, HOST:PORT). Default: this machine alone.")
    ] = None,
    as_json: Json = False,
    **given: Any,
) -> None:
    """Fine-tune with a pool of workers on Ray that may come and go. Started again, it goes on."""

    def body(session: Session) -> dict[str, Any]:
        from zotune.distributed.launch import pooled
        from zotune.presets import with_preset
        from zotune.resolve import resolve
        from zotune.track import tracked

        resolved = with_preset(resolve(values_of(given), config)).absolute()
        session.run = resolved.output_dir
        with tracked(resolved, session.watch, True) as watch:
            return pooled(resolved, watch, workers, gpu_workers, address)

    execute(body, as_json, show_run)
