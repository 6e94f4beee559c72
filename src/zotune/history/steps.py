"""The first steps of a journal: which records they are, and a copy of a run that ends there. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from zotune.aside import whole_folder
from zotune.disk import written
from zotune.errors import RunError
from zotune.records import HashRecord, Record, StepRecord, encode, parse_header


def count_steps(records: Sequence[Record]) -> int:
    """How many steps were taken."""
    return sum(isinstance(record, StepRecord) for record in records)


def first_steps(records: Sequence[Record], steps: int) -> list[Record]:
    """The records of the first `steps` steps, with the hashes up to there."""
    return [r for r in records if r.step < steps or (isinstance(r, HashRecord) and r.step == steps)]


def hash_at(records: Sequence[Record], steps: int) -> str | None:
    """The hash that was recorded after `steps` steps; None without one."""
    return next((r.sha256 for r in records if isinstance(r, HashRecord) and r.step == steps), None)


def check_step(run: Path, step: int, records: Sequence[Record]) -> None:
    """Raises RunError unless the run has `step` steps."""
    taken = count_steps(records)
    if not 0 <= step <= taken:
        raise RunError(f"{run} has {taken} steps, so none can be step {step}. Remedy: a step from 0 to {taken}.")


def shortened(data: bytes, records: Sequence[Record]) -> bytes:
    """The journal `data` with these records instead of its own; the header keeps its bytes."""
    return data[: parse_header(Path(), data)[1]] + b"".join(map(encode, records))


def make_folder(folder: Path, files: dict[str, bytes]) -> None:
    """A folder with these files that appears under its name only when whole. Raises RunError."""
    with written(folder, "change its permissions, or name another folder"), whole_folder(folder) as aside:
        for name, data in files.items():
            (aside / name).write_bytes(data)
