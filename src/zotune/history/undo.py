"""Forgetting the last steps of a run. What is forgotten stays beside, as a run folder of its own. Needs no torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from zotune.disk import refusal
from zotune.durable import write_file
from zotune.errors import RunError
from zotune.history.steps import count_steps, first_steps, hash_at, make_folder, shortened
from zotune.journal import read as read_journal
from zotune.run import RunFolder, RunPaths
from zotune.snapshot import discard


def undo(run: str | Path, steps: int) -> dict[str, Any]:
    """Take the last `steps` steps out of a run; `zotune resume` goes on from what is left.

    Config, journal and metrics as they were are kept in `RUN/undone/K`, which is a run folder itself. A kill at any
    instant leaves the run as it was or as it is afterwards. Raises RunError for steps that the run has not.
    """
    with RunFolder.open(run) as folder:
        paths = folder.paths
        data = paths.journal.read_bytes()
        records = read_journal(paths.journal)[1]
        taken = count_steps(records)
        if not taken:
            raise RunError(f"{paths.folder} has no step that could be undone. Remedy: name a run with steps.")
        if not 1 <= steps <= taken:
            raise RunError(
                f"{paths.folder} has {taken} steps, so {steps} of them cannot be undone. "
                f"Remedy: a number from 1 to {taken}."
            )
        left = taken - steps
        kept = _keep(paths)
        # Snapshots first: one of a forgotten step must never be taken for one of the steps to come.
        _drop_snapshots(paths.snapshots, left)
        remaining = first_steps(records, left)
        try:
            write_file(paths.journal, shortened(data, remaining))
        except OSError as error:
            raise refusal(str(paths.journal), error, "change its permissions; nothing was undone") from error
        folder.cut_metrics(sum(row["step"] <= left for row in folder.metrics()))
    return {"steps": left, "undone": steps, "recorded_sha256": hash_at(remaining, left), "kept": str(kept)}


def _keep(paths: RunPaths) -> Path:
    """A copy of config, journal, first values and metrics, synced, under the next free number."""
    numbers = [int(path.name) for path in (paths.undone).glob("*") if path.name.isdecimal()]
    kept = paths.undone / str(max(numbers, default=0) + 1)
    files = (paths.config, paths.journal, paths.start, paths.metrics)
    make_folder(kept, {path.name: path.read_bytes() for path in files if path.exists()})
    return kept


def _drop_snapshots(folder: Path, after: int) -> None:
    for path in folder.glob("step-*"):
        if path.name[5:].isdecimal() and int(path.name[5:]) > after:
            discard(path)
            if os.path.lexists(path):
                raise RunError(f"{path} cannot be deleted. Remedy: delete it, then undo again.")
