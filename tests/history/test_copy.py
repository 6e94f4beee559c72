"""A copy of a run goes on like the run, whatever was being written while it was copied."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from zotune.config import TrainConfig
from zotune.errors import RunError
from zotune.history.copy import copy
from zotune.history.verify import verify
from zotune.train import resume, train
from zotune.watch import Quiet

Config = Callable[..., TrainConfig]


@pytest.mark.parametrize("snapshots", [True, False])
def test_copy_resumes_to_the_same_bytes(config: Config, tmp_path: Path, snapshots: bool) -> None:
    """A run that was stopped in the middle of a record: the torn tail stays behind, the rest ends as the run does."""
    whole = train(config(snapshot_every=2), Quiet())
    run = tmp_path / "run"
    data = (run / "journal.zoj").read_bytes()
    (run / "journal.zoj").write_bytes(data[:-100])  # the last records, and a part of one
    found = copy(run, tmp_path / "other", snapshots)
    assert found["steps"] < 7 and found["bytes"] > 0
    assert (tmp_path / "other" / "snapshots").exists() == snapshots
    assert (run / "journal.zoj").read_bytes() == data[:-100]
    assert resume(tmp_path / "other", Quiet())["weights_sha256"] == whole["weights_sha256"]
    assert (tmp_path / "other" / "journal.zoj").read_bytes() == data
    assert verify(tmp_path / "other", Quiet())


def test_unfinished_snapshots_stay_behind(config: Config, tmp_path: Path) -> None:
    """A folder without its marker is none."""
    train(config(snapshot_every=3), Quiet())
    marker = tmp_path / "run" / "snapshots" / "step-0000000003" / "COMPLETE"
    marker.unlink()
    copy(tmp_path / "run", tmp_path / "other")
    names = [path.name for path in (tmp_path / "other" / "snapshots").iterdir()]
    assert names == ["step-0000000006"]


def test_copy_replaces_nothing(config: Config, tmp_path: Path) -> None:
    """A folder with content is left as it is."""
    train(config(steps=1), Quiet())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine").write_text("")
    with pytest.raises(RunError, match="is not empty"):
        copy(tmp_path / "run", tmp_path / "other")
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["mine"]
