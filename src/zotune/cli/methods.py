"""`zotune methods`: the table of methods."""

from __future__ import annotations

import shutil
import sys
import textwrap
from itertools import zip_longest
from typing import Any

from zotune.cli.frame import Json, Session, execute

_COLUMNS = ("name", "arxiv", "forwards_per_step", "replayable", "state")
_NARROW = 20  # characters that a wrapped column has at least


def command(as_json: Json = False) -> None:
    """List the methods. Paper, forward passes per step, state, replay; with --json a list of objects."""

    def body(session: Session) -> list[dict[str, Any]]:
        from zotune.methods import table

        return table()

    execute(body, as_json, _show)


def _show(session: Session, rows: list[dict[str, Any]]) -> None:
    # A pipe gets a line for each method; a terminal no line that it would break anywhere.
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for line in lines(rows, width):
        session.watch.say(line)


def lines(rows: list[dict[str, Any]], width: int | None) -> list[str]:
    """The table; within a width the two columns of words are wrapped, the last one to what is left."""
    cells = [_COLUMNS, *(tuple(_cell(row[name]) for name in _COLUMNS) for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(_COLUMNS))]
    if width is not None:
        widths[2] = min(widths[2], _NARROW)
        widths[-1] = max(min(widths[-1], width - sum(widths[:-1]) - 2 * (len(widths) - 1)), _NARROW)
    found = []
    for line in cells:
        wrapped = [textwrap.wrap(cell, own) for cell, own in zip(line, widths, strict=True)]
        for parts in zip_longest(*wrapped, fillvalue=""):
            found.append("  ".join(part.ljust(own) for part, own in zip(parts, widths, strict=True)).rstrip())
    return found


def _cell(value: Any) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)
