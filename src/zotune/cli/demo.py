"""`zotune demo`: a real fine-tune on the CPU, start to end."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from zotune.cli.frame import Json, Session, execute


def command(
    seed: Annotated[int, typer.Option(help="Seed of directions and data order.", min=0)] = 0,
    steps: Annotated[
        int | None, typer.Option(help="Training steps. Default: the demo's.", min=1, show_default=False)
    ] = None,
    output_dir: Annotated[
        Path | None, typer.Option(help="Folder of the run. Default: a temporary one.", show_default=False)
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads. Default: torch's.", min=1, show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Fine-tune a small real model on the CPU. Movie reviews, then a replay from the journal."""

    def body(session: Session) -> dict[str, Any]:
        session.run = output_dir and output_dir / "run"
        from zotune.demo.run import demo

        return demo(session.watch, seed=seed, steps=steps, output_dir=output_dir, threads=threads)

    execute(body, as_json)
