"""`zotune verify`, `checkout`, `undo`, `branch`, `resume` and `diff`, one behind the other on a real run."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def test_one_run_through_all(cli: Any, last: Any, run: Path, tmp_path: Path) -> None:
    """Verified, checked out, undone, branched with another rate, resumed and compared."""
    verified = last(cli("verify", run, "--json"))
    assert verified["verified"] is True and verified["hashed_steps"] == [3, 6, 7]
    saved = last(cli("checkout", run, "--step", 7, "--to", tmp_path / "saved", "--json"))
    assert saved["weights_sha256"] == verified["weights_sha256"] and saved["kind"] == "model"
    undone = last(cli("undo", run, 4, "--json"))
    assert undone["steps"] == 3 and undone["recorded_sha256"]
    changes = ["--set", "lr=0.1", "--set", "lr-schedule=linear"]
    branched = last(cli("branch", run, "--step", 2, *changes, "--to", tmp_path / "b", "--json"))
    assert branched["changed"] == {"lr": 0.1, "lr_schedule": "linear"} and branched["shared_steps"] == 2
    assert last(cli("resume", run, "--json"))["weights_sha256"] == verified["weights_sha256"]
    assert last(cli("resume", tmp_path / "b", "--json"))["steps"] == 7
    found = last(cli("diff", run, tmp_path / "b", "--json"))
    assert found["first_step"] == 2 and set(found["config"]) == {"lr", "lr_schedule"}
    assert last(cli("diff", run, undone["kept"], "--json"))["same_steps"] is True
