"""A journal for tests: one record of every kind, and a file of them."""

from __future__ import annotations

import json
from pathlib import Path

from zotune.journal import HashRecord, Journal, Record, StepRecord

HEADER = {"method": "mezo", "seed": 7, "scope": {"w.é": [2, 3]}}
HEADER_BYTES = 5 + 4 + len(json.dumps(HEADER, ensure_ascii=False, separators=(",", ":")).encode()) + 4


RECORDS: list[Record] = [
    StepRecord(0, (1e-6,), (0.6931471805599453, 0.7)),
    StepRecord(1, (1e-6,), (0.1 + 0.2, -0.0)),
    HashRecord(2, "ab" * 32),
    StepRecord(2, (1e-6, 2e-6), (1.0, 2.0, 3.0)),
    StepRecord(3, (5e-7,), tuple(i / 7 for i in range(300))),
    StepRecord(4, (), ()),
    StepRecord(2**32 - 1, (1e-7,), (float("inf"), 1e-320)),
]


def write(path: Path, records: list[Record] = RECORDS) -> list[int]:
    """Write a journal; return the file size after the header and after each record."""
    with Journal.create(path, HEADER) as journal:
        sizes = [path.stat().st_size]
        for record in records:
            journal.append(record)
            sizes.append(path.stat().st_size)
    return sizes
