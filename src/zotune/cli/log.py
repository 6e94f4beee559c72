"""`zotune log`: what a run's journal holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zotune.cli.frame import Json, RunArgument, Session, execute
from zotune.run import RunPaths

_COLUMNS = ("step", "lr", "loss", "projected_gradient")


def command(run: RunArgument, as_json: Json = False) -> None:
    """List the steps of a run. Learning rate, loss, projected gradient; with --json a list of objects."""

    def body(session: Session) -> Sequence[dict[str, Any]]:
        RunPaths(run).check()
        from zotune.revisit import log_rows

        return log_rows(run)

    execute(body, as_json, _show)


def _show(session: Session, rows: Sequence[dict[str, Any]]) -> None:
    session.watch.say("".join(f"{name:>20}" for name in _COLUMNS))
    for row in rows:
        session.watch.say("".join(f"{_cell(row.get(name)):>20}" for name in _COLUMNS))
    session.watch.say(f"{len(rows)} steps")


def _cell(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(_cell, value))
    return f"{value:.6g}" if isinstance(value, float) else "-" if value is None else str(value)
