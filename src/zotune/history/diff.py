"""Where two runs part: the first step, the first hash, the options and the header. Needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zotune.records import HashRecord, Record, StepRecord, encode
from zotune.run import RunPaths


def diff(a: str | Path, b: str | Path) -> dict[str, Any]:
    """Compare two runs by their journals, bit for bit; neither is changed.

    `first_step`: the first step whose record differs or that only one run has (None: there is none), with both
    records. `first_hash`: the first step after which both recorded a hash and the hashes differ. `config`, `header`:
    name to the pair of values.
    """
    (header_a, records_a), (header_b, records_b) = (RunPaths(run).check().recorded()[:2] for run in (a, b))
    steps_a, steps_b = _steps(records_a), _steps(records_b)
    differing = (step for step in sorted({*steps_a, *steps_b}) if _bytes(steps_a, step) != _bytes(steps_b, step))
    first = next(differing, None)
    hashes_a, hashes_b = _hashes(records_a), _hashes(records_b)
    other_hashes = (step for step in sorted({*hashes_a} & {*hashes_b}) if hashes_a[step] != hashes_b[step])
    config = _pairs(header_a.pop("config", {}), header_b.pop("config", {}))
    header = _pairs(header_a, header_b)
    return {
        "same_steps": first is None,
        "first_step": first,
        "a": None if first is None else _row(steps_a.get(first)),
        "b": None if first is None else _row(steps_b.get(first)),
        "steps": [len(steps_a), len(steps_b)],
        "first_hash": next(other_hashes, None),
        "config": config,
        "header": header,
    }


def _steps(records: list[Record]) -> dict[int, StepRecord]:
    return {record.step: record for record in records if isinstance(record, StepRecord)}


def _hashes(records: list[Record]) -> dict[int, str]:
    return {record.step: record.sha256 for record in records if isinstance(record, HashRecord)}


def _bytes(steps: dict[int, StepRecord], step: int) -> bytes | None:
    return encode(steps[step]) if step in steps else None


def _row(record: StepRecord | None) -> dict[str, Any] | None:
    return None if record is None else {"lrs": list(record.lrs), "losses": list(record.losses)}


def _pairs(a: Any, b: Any) -> dict[str, list[Any]]:
    if not isinstance(a, dict) or not isinstance(b, dict):
        return {} if a == b else {"": [a, b]}
    return {name: [a.get(name), b.get(name)] for name in sorted({*a, *b}) if a.get(name) != b.get(name)}
