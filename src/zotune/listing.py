"""`zotune ls`: the runs below a folder, with how far they came. Nothing is locked, and no weight is read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zotune.errors import RunError, UserError
from zotune.journal import HashRecord, StepRecord
from zotune.resolve import read_file
from zotune.run import RunPaths

_DEPTH = 3  # folders below the one that is named


def runs_below(folder: Path) -> list[dict[str, Any]]:
    """A row for each run, sorted by path: run, method, scope, model, step, steps, finished, accuracy_before, accuracy,
    loss, journal_bytes; `problem` says why a run cannot be read. Raises RunError for a folder that is none.
    """
    if not folder.is_dir():
        raise RunError(f"{folder} is not a folder. Remedy: name one that holds runs.")
    return [_row(run) for run in sorted(_runs(folder, _DEPTH))]


def _runs(folder: Path, depth: int) -> Iterator[Path]:
    if RunPaths(folder).journal.is_file():
        yield folder
        return
    if depth:
        for inner in folder.iterdir():
            if inner.is_dir() and not inner.is_symlink() and not inner.name.startswith("."):
                yield from _runs(inner, depth - 1)


def _row(run: Path) -> dict[str, Any]:
    paths = RunPaths(run)
    row: dict[str, Any] = {"run": str(run)}
    try:
        header, records, _ = paths.recorded()
        config = read_file(paths.check().config)[0]
    except UserError as error:
        return {**row, "problem": str(error)}
    taken = sum(isinstance(record, StepRecord) for record in records)
    steps = config.get("steps")
    finished = taken == steps and bool(records) and isinstance(records[-1], HashRecord)  # the last thing a run writes
    evals = [row["eval"] for row in paths.logged() if row.get("eval")]
    return {
        **row,
        "method": header.get("method"),
        "scope": config.get("scope"),
        "model": config.get("model"),
        "step": taken,
        "steps": steps,
        "finished": finished,
        "accuracy_before": evals[0].get("accuracy") if evals else None,
        "accuracy": evals[-1].get("accuracy") if evals else None,
        "loss": evals[-1].get("loss") if evals else None,
        "journal_bytes": paths.journal.stat().st_size,
    }
