"""The table of a comparison, as lines of a terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from zotune.watch import NUMBERS, SHARES, duration, size

COLUMNS = ("row", "scope", "score (95 %)", "loss", "lr", "steps", "forwards", "time", "memory")
NOTE = (
    "Forwards: of one batch at one point, before the last evaluation; +b: as many backward passes, which cost about "
    "two forwards each. Time: of the training, of untrained rows all they do. Memory: the most that the row's own "
    "process held, with libraries and the loading of the model. *: the method's default for all "
    "weights, as its paper has none for this scope."
)


def lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Aligned lines: the columns, a line for each row; why a row could not run stands in place of its figures."""
    return aligned([COLUMNS, *map(_cells, rows)])


def aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    """A line for each row of cells, columns side by side; the last cell of a shorter row may be of any width."""
    columns = max(map(len, cells))
    settled = [line if len(line) == columns else line[:-1] for line in cells]
    widths = [max((len(line[i]) for line in settled if len(line) > i), default=0) for i in range(columns)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False)).rstrip() for line in cells]


def markdown(result: Mapping[str, Any]) -> str:
    """A page with what the rows share, the table, and how to read it."""
    about = [f"- {name}: {_plain(value)}" for name, value in result["about"].items()]
    head = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    body = []
    for row in result["rows"]:
        cells = _cells(row)
        cells = (*cells, *[""] * (len(COLUMNS) - len(cells)))
        body.append("| " + " | ".join(_plain(cell) for cell in cells) + " |")
    return "\n".join(["# Comparison", "", *about, "", *head, *body, "", NOTE, ""])


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    if "error" in row:
        return (row["row"], "-", " ".join(f"cannot run: {row['error']}".split()))
    forwards = f"{row['forwards']:,}" + ("+b" if row.get("backwards") else "")
    at_least = "at least " if row.get("continued") else ""
    return (
        row["row"],
        row.get("scope") or "-",
        score(row),
        number(row.get("loss"), ".3f"),
        number(row.get("lr"), "g") + ("*" if row.get("lr_for_all") else ""),
        number(row.get("steps"), ","),
        forwards,
        at_least + duration(row["seconds"]),
        size(row["peak_memory_bytes"]) if row.get("peak_memory_bytes") else "-",
    )


def score(row: Mapping[str, Any]) -> str:
    """What an evaluation measured, with its interval; - where it measured nothing but the loss."""
    for names, factor, digits, unit in ((SHARES, 100, 1, " %"), (NUMBERS, 1, 3, "")):
        for name in names:
            if row.get(name) is None:
                continue
            said = f"{factor * row[name]:.{digits}f}{unit}"
            if row.get("low") is not None and row.get("high") is not None:
                said += f" ({factor * row['low']:.{digits}f} to {factor * row['high']:.{digits}f})"
            return said if name == "accuracy" else f"{name} {said}"
    return "-"


def number(value: Any, form: str) -> str:
    """A number, or the word that stands for one that is not finite."""
    if value is None:
        return "-"
    return value if isinstance(value, str) else format(value, form)


def _plain(value: Any) -> str:
    """Text that stays in its cell or line."""
    said = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return " ".join(said.split()).replace("|", "\\|")
