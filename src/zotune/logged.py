"""The lines of metrics.jsonl and timing.jsonl, as a run writes them.

What a kill left unfinished, and what somebody else made of a line, is no line: who reads them may rely on the types.

metrics  step, and of a step loss, projected_gradient, lr; of an evaluation `eval`: {} or loss, accuracy, examples, low,
         high and what else is measured. A number that is not finite stands there as the text "nan", "inf" or "-inf",
         and is a number again when it is read.
timing   steps, seconds, peak_memory_bytes
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zotune.plain import is_count, parse_json, read_plain

Row = dict[str, Any]
_MOST_STEPS = 2**32
_NOT_FINITE = ("nan", "inf", "-inf")


def lines_of(data: bytes, fits: Callable[[Row], bool]) -> list[tuple[Row, bytes]]:
    """The whole lines that hold a JSON object that `fits`, each with its bytes."""
    found = []
    for line in data.splitlines(keepends=True):
        with contextlib.suppress(ValueError):
            row = parse_json(line)
            if line.endswith(b"\n") and isinstance(row, dict) and fits(row):
                found.append((_numbers(row), line))
    return found


def metrics_of(path: Path) -> list[tuple[Row, bytes]]:
    """The lines of a run's metrics with their bytes; none where there is no such file, or it cannot be read."""
    return lines_of(_content(path), is_metrics)


def timing_of(path: Path) -> list[Row]:
    """The lines of a run's timing: steps, seconds, peak_memory_bytes."""
    return [row for row, _ in lines_of(_content(path), is_timing)]


def is_metrics(row: Row) -> bool:
    """Whether a row is one of metrics.jsonl."""
    numbers = (row[name] for name in ("loss", "projected_gradient", "lr") if name in row)
    return is_count(row.get("step"), _MOST_STEPS) and all(map(_is_number, numbers)) and _is_eval(row.get("eval", {}))


def is_timing(row: Row) -> bool:
    """Whether a row is one of timing.jsonl."""
    seconds = row.get("seconds")
    known = is_count(row.get("steps"), _MOST_STEPS) and is_count(row.get("peak_memory_bytes", 0))
    return known and _is_number(seconds) and not isinstance(seconds, str)


def _numbers(row: Row) -> Row:
    """The row with numbers in place of the texts that stand for them."""
    found = dict(row)
    for name, value in row.items():
        if isinstance(value, dict):
            found[name] = _numbers(value)
        elif isinstance(value, str) and value in _NOT_FINITE:
            found[name] = float(value)
    return found


def _is_eval(found: Any) -> bool:
    if not isinstance(found, dict):
        return False
    if not found:
        return True
    scored = all(value is None or _is_number(value) for value in found.values())
    return scored and _is_number(found.get("loss")) and is_count(found.get("examples"))


def _is_number(value: Any) -> bool:
    if isinstance(value, str):
        return value in _NOT_FINITE
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**1023


def _content(path: Path) -> bytes:
    try:
        return read_plain(path)
    except OSError:
        return b""
