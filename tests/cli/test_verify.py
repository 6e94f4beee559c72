"""`zotune verify`: every recorded hash, or the first that is not met."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from zotune.journal import Journal, read
from zotune.records import HashRecord


def test_every_recorded_hash(cli: Any, last: Any, run: Path) -> None:
    """Those of both snapshots and the end, as JSON and in words; the run is only read."""
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    found = last(cli("verify", run, "--json"))
    assert (found["verified"], found["hashed_steps"], found["unhashed_steps"]) == (True, [3, 6, 7], 0)
    assert (found["steps"], found["hashes"], found["torn_bytes"]) == (7, 3, 0)
    outcome = cli("verify", run)
    words = dict(line.split(maxsplit=1) for line in outcome.stdout.splitlines() if len(line.split()) > 1)
    assert outcome.stderr == "" and words["verified"] == "True" and words["weights_sha256"] == found["weights_sha256"]
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(("changed", "right", "after"), [(3, 0, 0), (6, 1, 3), (7, 2, 6)])
def test_a_hash_that_the_weights_do_not_have(refused: Any, run: Path, changed: int, right: int, after: int) -> None:
    """Exit code 4: the step, how many were right before it, and up to where."""
    header, records, _ = read(run / "journal.zoj")
    (run / "journal.zoj").unlink()
    with Journal.create(run / "journal.zoj", header) as journal:
        for record in records:
            other = isinstance(record, HashRecord) and record.step == changed
            journal.append(HashRecord(changed, "ab" * 32) if other else record)
    said = (
        rf"after {changed} steps the weights hash to .* recorded was abababab.*; {right} of 3 .* after step {after}\)"
    )
    ended, line = refused(["verify", "RUN"])
    assert ended == 4 and re.search(said, line), line


def test_what_is_no_run(refused: Any) -> None:
    """One line, and nothing is made."""
    ended, line = refused(["verify", "TO"])
    assert ended == 4 and re.search("is not a folder", line), line
