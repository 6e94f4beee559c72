"""Undo: the end of a run is forgotten, kept beside, and comes back bit for bit when the run goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zotune.errors import JournalError, RunError
from zotune.history.undo import undo
from zotune.history.verify import verify
from zotune.journal import HashRecord, StepRecord, read
from zotune.revisit import replay
from zotune.run import RunFolder
from zotune.train import resume
from zotune.watch import Quiet


def content(run: Path) -> tuple[bytes, bytes]:
    return (run / "journal.zoj").read_bytes(), (run / "metrics.jsonl").read_bytes()


def recorded(run: Path) -> dict[int, str]:
    return {r.step: r.sha256 for r in read(run / "journal.zoj")[1] if isinstance(r, HashRecord)}


@pytest.mark.parametrize("steps", range(1, 8))
def test_undone_and_resumed(run: Path, steps: int) -> None:
    """The weights are those of so many steps earlier; a resume writes the same bytes again."""
    before, hashes = content(run), recorded(run)
    found = undo(run, steps)
    left = 7 - steps
    assert (found["steps"], found["undone"]) == (left, steps)
    assert found["recorded_sha256"] == hashes.get(left)
    records = read(run / "journal.zoj")[1]
    assert sum(isinstance(r, StepRecord) for r in records) == left
    replayed = replay(run, False, Quiet())
    assert replayed["steps"] == left and (left not in hashes or replayed["weights_sha256"] == hashes[left])
    assert all(int(path.name[5:]) <= left for path in (run / "snapshots").iterdir())
    assert b'"step": %d' % (left + 1) not in content(run)[1]
    assert resume(run, Quiet())["weights_sha256"] == hashes[7]
    assert content(run) == before


def test_a_run_without_steps(run: Path) -> None:
    """Nothing is left to undo, so no number of steps is proposed."""
    undo(run, 7)
    before = content(run)
    with pytest.raises(RunError, match=r"run has no step that could be undone\. Remedy: name a run with steps\.$"):
        undo(run, 1)
    assert content(run) == before and not (run / "undone" / "2").exists()


def test_what_was_forgotten_is_a_run(run: Path) -> None:
    """The folder beside holds the old journal and metrics to the byte, verifies, and is never written over."""
    before = content(run)
    kept = [Path(undo(run, steps)["kept"]) for steps in (1, 2)]
    assert [path.relative_to(run) for path in kept] == [Path("undone/1"), Path("undone/2")]
    assert content(kept[0]) == before and verify(kept[0], Quiet())["steps"] == 7
    assert replay(kept[1], False, Quiet())["steps"] == 6


@pytest.mark.parametrize("steps", [0, -1, 8])
def test_no_such_steps(run: Path, steps: int) -> None:
    """More steps than there are, or none, are refused; nothing changes and the lock is free."""
    before = content(run)
    with pytest.raises(RunError, match=f"has 7 steps, so {steps} of them cannot be undone. Remedy"):
        undo(run, steps)
    assert content(run) == before and not (run / "undone").exists() and not (run / "lock").exists()


def test_a_run_at_work_is_left_alone(run: Path) -> None:
    """While a process writes to the run, undo is refused."""
    with RunFolder.open(run), pytest.raises(RunError, match="in use by process"):
        undo(run, 1)


def test_a_torn_tail_is_kept_beside(run: Path) -> None:
    """The copy holds the file as it was, the torn tail too; what is left is whole."""
    path = run / "journal.zoj"
    path.write_bytes(path.read_bytes()[:-3])
    before = path.read_bytes()
    kept = Path(undo(run, 2)["kept"])
    assert (kept / "journal.zoj").read_bytes() == before and read(path)[2] == 0


def test_a_corrupt_journal_is_not_touched(run: Path) -> None:
    """A corrupt middle is an error, as everywhere."""
    path = run / "journal.zoj"
    data = bytearray(path.read_bytes())
    data[-80] ^= 1
    path.write_bytes(data)
    with pytest.raises(JournalError, match="corrupt at byte"):
        undo(run, 1)
    assert path.read_bytes() == data and not (run / "undone").exists()


@pytest.mark.parametrize("stop_at", range(11))
def test_stopped_anywhere(run: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int) -> None:
    """Whichever write fails, the run is the old one or the new one, and resumes to the same end."""
    from zotune import aside
    from zotune.history import undo as module

    before, calls = content(run), [0]

    def counting(inner: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            calls[0] += 1
            if calls[0] == stop_at + 1:
                raise KeyboardInterrupt
            return inner(*arguments, **named)

        return call

    monkeypatch.setattr(aside, "sync_file", counting(aside.sync_file))
    monkeypatch.setattr(aside, "sync_folder", counting(aside.sync_folder))
    monkeypatch.setattr(module, "write_file", counting(module.write_file))
    monkeypatch.setattr(aside.shutil, "rmtree", counting(aside.shutil.rmtree))
    monkeypatch.setattr(RunFolder, "cut_metrics", counting(RunFolder.cut_metrics))
    try:
        undo(run, 3)
    except KeyboardInterrupt:
        pass
    monkeypatch.undo()
    assert sum(isinstance(r, StepRecord) for r in read(run / "journal.zoj")[1]) in (4, 7)
    resume(run, Quiet())
    assert content(run) == before
