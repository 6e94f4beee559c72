"""`zotune undo`: the last steps are forgotten, and kept beside."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from zotune.run import RunFolder


def test_the_last_steps_are_gone(cli: Any, last: Any, run: Path) -> None:
    """How many are left and where the others are, as JSON and in words; one more undo is another folder."""
    before = (run / "journal.zoj").read_bytes()
    found = last(cli("undo", run, 1, "--json"))
    assert (found["steps"], found["undone"], found["kept"]) == (6, 1, str(run / "undone" / "1"))
    assert (run / "undone" / "1" / "journal.zoj").read_bytes() == before and len(found["recorded_sha256"]) == 64
    outcome = cli("undo", run, 2)
    assert (outcome.code, outcome.stderr) == (0, "")
    assert "steps   4" in outcome.stdout and str(run / "undone" / "2") in outcome.stdout
    assert "recorded_sha256" not in outcome.stdout  # after step 4 none was recorded, so none is said


def test_a_run_at_work_is_left_alone(refused: Any, run: Path) -> None:
    """While a process writes to it."""
    with RunFolder.open(run):
        ended, line = refused(["undo", "RUN", "1"])
        assert ended == 4 and re.search("in use by process", line), line


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [(["undo", "RUN", "8"], 4, "cannot be undone"), (["undo", "RUN", "many"], 2, "Invalid value for 'N'")],
)
def test_errors(refused: Any, words: list[str], code: int, said: str) -> None:
    """More steps than there are, and no number."""
    ended, line = refused(words)
    assert ended == code and re.search(said, line), line
