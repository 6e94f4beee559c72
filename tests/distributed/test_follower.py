"""What stands for the run folder in a process that writes nothing: it reads as the folder does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.journals import HEADER, RECORDS, write

from zotune.distributed.follower import FollowerFolder, FollowerJournal, tell, told
from zotune.errors import JournalError
from zotune.records import StepRecord
from zotune.run import RunFolder, RunPaths

CONFIG = "model: m\nsteps: 7\n"
ROWS = [{"step": 0, "eval": {"loss": 0.5, "examples": 4}}, {"step": 1, "loss": 0.25}, {"step": 2, "loss": 0.125}]


class Wire:
    """Two ends of `Group.share`: process 0 speaks first."""

    def __init__(self) -> None:
        self.data = b""

    def share(self, data: bytes) -> bytes:
        self.data = data or self.data
        return self.data


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    """The folder of a run with a config and metrics, as process 0 has it."""
    with RunFolder.create(tmp_path / "run", CONFIG) as folder:
        for row in ROWS:
            folder.log_metrics(row)
    return RunPaths(tmp_path / "run")


def heard(paths: RunPaths, elsewhere: Path) -> Any:
    """What the others hear of a run; they need no file of it."""
    wire: Any = Wire()
    tell(wire, paths)
    return told(wire, RunPaths(elsewhere))


def test_what_process_0_has_the_others_know(paths: RunPaths, tmp_path: Path) -> None:
    """Config, metrics and journal arrive whole, where the others cannot see the folder at all."""
    write(paths.journal)
    values, folder, journal = heard(paths, tmp_path / "elsewhere")
    assert values == {"model": "m", "steps": 7} and folder.metrics() == ROWS
    assert journal.header == HEADER and list(journal.records) == RECORDS
    assert folder.path == tmp_path / "elsewhere" and not folder.path.exists()


def test_a_run_that_has_not_begun_has_no_journal(paths: RunPaths, tmp_path: Path) -> None:
    """Without a journal there is none to follow; a torn tail is left out, and a corrupt middle is an error for all."""
    assert heard(paths, tmp_path / "a")[2] is None
    sizes = write(paths.journal)
    data = paths.journal.read_bytes()
    paths.journal.write_bytes(data[:-3])
    assert list(heard(paths, tmp_path / "a")[2].records) == RECORDS[:-1]
    paths.journal.write_bytes(data[: sizes[0] + 9] + bytes([data[sizes[0] + 9] ^ 1]) + data[sizes[0] + 10 :])
    with pytest.raises(JournalError, match=f"corrupt at byte {sizes[0]}"):
        heard(paths, tmp_path / "a")


def test_metrics_are_kept_and_cut_as_in_a_folder(paths: RunPaths) -> None:
    """The same calls to a real folder and to what stands for it: the same rows, and copies of what was given."""
    write(paths.journal)
    row = {"step": 3, "loss": 1.0}
    with RunFolder.open(paths.folder) as real, FollowerFolder(paths, ROWS) as stand_in:
        for folder in (real, stand_in):
            folder.cut_metrics(2)
            folder.log_metrics(row)
        row["step"] = 9
        assert real.metrics() == stand_in.metrics() == [*ROWS[:2], {"step": 3, "loss": 1.0}]


def test_nothing_is_written(paths: RunPaths) -> None:
    """Snapshots are read where the folder can be, and no call changes a byte."""
    write(paths.journal)
    with RunFolder.open(paths.folder) as real:
        real.save_snapshot(2, {"w": torch.ones(2)}, {"weights_sha256": "ab"})
    before = {path: path.read_bytes() for path in paths.folder.rglob("*") if path.is_file()}
    with FollowerFolder(paths) as folder, FollowerJournal(HEADER, RECORDS[:1]) as journal:
        folder.log_timing({"seconds": 1.0})
        folder.save_snapshot(4, {"w": torch.zeros(2)}, {})
        journal.append(StepRecord(1, (0.1,), (1.0,)))
        found = folder.latest_snapshot(4)
        assert found is not None and found[0] == 2 and torch.equal(found[1]["w"], torch.ones(2))
        assert folder.latest_snapshot(1) is None and journal.records == tuple(RECORDS[:1]) and journal.size == 0
    assert {path: path.read_bytes() for path in paths.folder.rglob("*") if path.is_file()} == before
