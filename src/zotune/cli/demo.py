"""`zotune demo`: a real fine-tune on the CPU, start to end."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from zotune.cli.frame import Json, Session, execute
from zotune.config import MOST_THREADS


def command(
    seed: Annotated[int, typer.Option(help="Seed of directions and data order.", min=0)] = 0,
    steps: Annotated[
        int | None, typer.Option(help="Training steps. Default: the demo's.", min=1, show_default=False)
    ] = None,
    output_dir: Annotated[
        Path | None, typer.Option(help="Folder of the run. Default: a temporary one.", show_default=False)
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads. Default: torch's.", min=1, max=MOST_THREADS, show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Fine-tune a small real model on the CPU. Movie reviews, then a replay from the journal."""

    def body(session: Session) -> dict[str, Any]:
        session.run = output_dir and output_dir / "run"
        from zotune.demo.run import demo

        return demo(session.watch, seed=seed, steps=steps, output_dir=output_dir, threads=threads)

    execute(body, as_json, _show)


def _show(session: Session, found: dict[str, Any]) -> None:
    """The figures were said in a sentence; what is left is where the run is, and what can be done with it."""
    run = shlex.quote(str(found["run"]))
    before, after = (f"{100 * found[f'accuracy_{when}']:.1f} %" for when in ("before", "after"))
    session.watch.header({"accuracy": f"{before} before, {after} after", "run": str(found["run"])})
    session.watch.say(f"Next: `zotune report {run}` draws it, `zotune log {run}` lists what its journal holds, and")
    session.watch.say("`zotune init` writes a config for a model and rows of your own.")
