"""From a stopped run to where it was: metrics and snapshots that are damaged cost time, a wrong hash is an error."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests import courses
from tests.courses import Noting, state

from zotune.errors import RunError
from zotune.journal import HashRecord, Journal
from zotune.journal import read as read_journal
from zotune.train import resume
from zotune.watch import Quiet

half, whole, stop_before = courses.half, courses.whole, courses.stop_before


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: b"",
        lambda text: text[:-3],
        lambda text: text[:100],
        lambda text: text.replace(b'{"step": 3, "loss"', b'{"step": 3, "lost"'),
        lambda text: text.replace(b'{"step": 3, "eval"', b'{"step": 9, "eval"'),
        lambda text: b"".join(text.splitlines(keepends=True)[1:]),
        lambda text: text.replace(b"\n", b"\n\n").replace(b"}", b"}\xff", 1),
        lambda text: text + text,
    ],
)
def test_metrics_are_written_again(half: Path, whole: Path, damage: Callable[[bytes], bytes]) -> None:
    """Metrics that are lost, cut, with a hole, or with lines that do not belong there end as the undisturbed run's."""
    path = half / "metrics.jsonl"
    damaged = damage(path.read_bytes())
    assert damaged != path.read_bytes()
    path.write_bytes(damaged)
    resume(half, Quiet())
    assert state(half) == state(whole)


def test_metrics_file_is_gone(half: Path, whole: Path) -> None:
    """The whole file is made again, evaluations included."""
    (half / "metrics.jsonl").unlink()
    resume(half, Quiet())
    assert state(half) == state(whole)


def _alter_weights(snapshot: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(snapshot / "tensors.safetensors")
    next(iter(tensors.values())).view(-1)[0] += 1
    save_file(tensors, snapshot / "tensors.safetensors")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: (path / "COMPLETE").unlink(), "step-0000000004 is skipped: it has no COMPLETE"),
        (lambda path: (path / "tensors.safetensors").write_bytes(b"x"), "does not have the size"),
        (_alter_weights, "The snapshot of step 4 does not hold the weights it was made of"),
        (lambda path: shutil.rmtree(path.parent), ""),
    ],
)
def test_damaged_snapshots_only_cost_time(
    half: Path, whole: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None], said: str
) -> None:
    """A snapshot without its marker, cut, with a changed weight, or gone: said, and the run ends the same."""
    damage(half / "snapshots" / "step-0000000004")
    watch = Noting()
    with caplog.at_level(logging.WARNING, "zotune"):
        resume(half, watch)
    assert said in caplog.text + " ".join(watch.said)
    assert state(half) == state(whole)


def test_recorded_hash_is_checked(half: Path) -> None:
    """A hash on the way that the replayed weights do not have stops a resume, even without a snapshot."""
    shutil.rmtree(half / "snapshots")
    path = half / "journal.zoj"
    header, records, _ = read_journal(path)
    path.unlink()
    with Journal.create(path, header) as journal:
        for record in records:
            journal.append(HashRecord(2, "ab" * 32) if isinstance(record, HashRecord) and record.step == 2 else record)
    with pytest.raises(RunError, match="weights after 2 steps are not those that the run recorded"):
        resume(half, Quiet())
