"""`zotune methods`: the table of methods."""

from __future__ import annotations

from typing import Any

from zotune.cli.frame import Json, Session, execute

_COLUMNS = ("name", "arxiv", "forwards_per_step", "replayable", "state")


def command(as_json: Json = False) -> None:
    """List the methods. Paper, forward passes per step, state, replay; with --json a list of objects."""

    def body(session: Session) -> list[dict[str, Any]]:
        from zotune.methods import table

        return table()

    execute(body, as_json, _show)


def _show(session: Session, rows: list[dict[str, Any]]) -> None:
    lines = [_COLUMNS, *(tuple(_cell(row[name]) for name in _COLUMNS) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(_COLUMNS))]
    for line in lines:
        session.watch.say("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _cell(value: Any) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)
