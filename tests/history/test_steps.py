"""The first steps of a journal: which records they are, and the bytes of a journal that ends there."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.journals import HEADER, write

from zotune.errors import RunError
from zotune.history.steps import check_step, count_steps, first_steps, hash_at, make_folder, shortened
from zotune.journal import read
from zotune.records import HashRecord, Record, StepRecord

STEPS = [StepRecord(step, (0.1,), (1.0, 2.0)) for step in range(4)]
# A hash lies behind the steps that it was made after, and has their number.
RECORDS: list[Record] = [
    HashRecord(0, "aa" * 32), *STEPS[:2], HashRecord(2, "bb" * 32), *STEPS[2:], HashRecord(4, "cc" * 32)
]  # fmt: skip


@pytest.mark.parametrize(("steps", "kept"), [(0, 1), (1, 2), (2, 4), (3, 5), (4, 7), (9, 7)])
def test_the_records_of_the_first_steps(steps: int, kept: int) -> None:
    """Each step below the number, and the hashes up to it: that after the last step too."""
    assert first_steps(RECORDS, steps) == RECORDS[:kept]
    assert count_steps(first_steps(RECORDS, steps)) == min(steps, 4)


def test_the_hash_after_a_step() -> None:
    """Where one was recorded."""
    assert [hash_at(RECORDS, steps) for steps in range(5)] == ["aa" * 32, None, "bb" * 32, None, "cc" * 32]


def test_a_step_that_the_run_has_not() -> None:
    """0 is the base; the error says how many there are."""
    for step in range(5):
        check_step(Path("run"), step, RECORDS)
    for step in (-1, 5):
        with pytest.raises(RunError, match=f"run has 4 steps, so none can be step {step}. Remedy: a step from 0 to 4."):
            check_step(Path("run"), step, RECORDS)


def test_a_shortened_journal_is_the_journal_of_those_steps(tmp_path: Path) -> None:
    """Byte for byte what a run of so many steps would have written, header and all; a torn tail is gone."""
    whole, short = tmp_path / "whole.zoj", tmp_path / "short.zoj"
    write(whole, RECORDS)
    write(short, RECORDS[:4])
    found = shortened(whole.read_bytes() + b"\x01torn", first_steps(RECORDS, 2))
    assert found == short.read_bytes()
    assert read(short) == (HEADER, RECORDS[:4], 0)


def test_a_folder_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files under its name; where it cannot be written, one sentence and nothing left behind."""
    make_folder(tmp_path / "a" / "b", {"x": b"1", "y": b""})
    assert {path.name: path.read_bytes() for path in (tmp_path / "a" / "b").iterdir()} == {"x": b"1", "y": b""}
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match="b cannot be written: .*Remedy: change its permissions, or name"):
        make_folder(tmp_path / "file" / "b", {"x": b"1"})

    def full(path: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(RunError, match="c cannot be written: No space left on device. Remedy"):
        make_folder(tmp_path / "c", {"x": b"1"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "file"]
