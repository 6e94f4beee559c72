"""`zotune plan`: what a run will take, before it starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from zotune.cli.frame import Json, Session, execute
from zotune.cli.options import METHOD_FLAGS, values_of, with_options
from zotune.cli.summary import beside
from zotune.config import OPTIONS
from zotune.run import RunPaths
from zotune.watch import duration, size

_WORDS = {
    "runtime": "Python, torch and libraries",
    "weights": "weights",
    "activations": "one forward",
    "reused": "activations kept between steps",
    "state": "state of the method",
    "loading": "while loading: the file beside the weights",
}


@with_options([*OPTIONS, *METHOD_FLAGS])
def command(
    run: Annotated[
        Path | None,
        typer.Argument(metavar="[RUN]", help="A finished run: what was predicted beside what it took."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="YAML file with the same names; flags win.", show_default=False),
    ] = None,
    processes: Annotated[
        int, typer.Option("--processes", min=1, help="How many processes of torchrun share the run.")
    ] = 1,
    as_json: Json = False,
    **given: Any,
) -> None:
    """Predict memory, time and disk of a run. No weights are loaded; the options are those of `zotune train`."""

    def body(session: Session) -> dict[str, Any]:
        from zotune.presets import with_preset
        from zotune.resolve import resolve

        file = config if run is None else RunPaths(run).check().config
        resolved = resolve(values_of(given), file).absolute()
        if run is None:  # a run's own config is what it began with
            resolved = with_preset(resolved)
        from zotune.plan import plan

        return plan(resolved, session.watch, run, processes)

    execute(body, as_json, _show)


def _show(session: Session, found: dict[str, Any]) -> None:
    memory, disk, measured = found["memory"], found["disk"], found.get("measured", {})
    lines = {
        "model": f"{found['model']} ({found['parameters']:,} parameters, {found['trained']:,} trained)",
        "method": found["method"],
        "step": f"{found['forwards_per_step']} forwards, about {found['seconds_per_step']:.2g} s"
        + (f" on {found['processes']} processes" if found["processes"] > 1 else "")
        + (f"; {found['blocks_reused']} blocks run once per batch" if found["blocks_reused"] else ""),
        "time": f"about {duration(found['seconds'])}, evaluations included",
    }
    for name, words in _WORDS.items():
        if memory[name]:
            lines[f"  {name}"] = f"{size(memory[name]):>8}  {words}"
    lines["memory"] = f"{size(memory['peak']):>8}  at most, {_room(memory)}"
    lines["journal"] = f"{size(disk['journal']):>8}"
    blocks = f", and {size(disk['blocks'])} of blocks while it runs" if disk["blocks"] else ""
    lines["disk"] = f"{size(disk['total']):>8}  with metrics and snapshots{blocks}, {_room(disk)}"
    if measured:
        lines["measured"] = (
            f"memory {_beside(memory['peak'], measured['peak_memory_bytes'], size)}, time of the training "
            f"{_beside(found['train_seconds'], measured['train_seconds'], _seconds)}, journal "
            f"{_beside(disk['journal'], measured['journal_bytes'], size)}"
        )
    session.watch.header(lines)


def _room(part: dict[str, Any]) -> str:
    if part["free"] is None:
        return "what is free is not known"
    return f"{'fits' if part['fits'] else 'DOES NOT FIT'} into the {size(part['free'])} that are free"


def _beside(predicted: float, measured: float | None, said: Callable[[Any], str]) -> str:
    return "not recorded" if not measured else f"{beside(predicted, measured)} of {said(measured)}"


def _seconds(value: float) -> str:
    return f"{value:.2g} s" if value < 60 else duration(value)
