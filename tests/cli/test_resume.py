"""`zotune resume RUN`."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.cli.conftest import FINISHED


def test_resume(cli: Any, fakes: Any, run_folder: Path) -> None:
    """The run folder reaches `resume`; its result is printed."""
    fakes.results["resume"] = {**FINISHED, "steps": 5}
    outcome = cli("resume", run_folder, "--json")
    assert json.loads(outcome.stdout) == fakes.results["resume"]
    (name, arguments, named) = fakes.calls[-1]
    assert name == "resume" and arguments[0] == run_folder
    off = {"trust_remote_code": False, "trust_reward": False, "allow_task_code": False, "group": None, "places": {}}
    assert named == off
    assert cli("resume", run_folder, "--trust-remote-code", "--trust-reward", "--allow-task-code").code == 0
    allowed = {"trust_remote_code": True, "trust_reward": True, "allow_task_code": True}
    assert fakes.calls[-1][2] == {**off, **allowed}
    assert cli("resume", run_folder, "--rows-per-forward", "2", "--eval-batch-size", "1", "--reuse-mb", "0").code == 0
    assert fakes.calls[-1][2]["places"] == {"rows_per_forward": 2, "eval_batch_size": 1, "reuse_mb": 0}
    assert cli("resume", run_folder, "--offload", "disk", "--scorer", "torch").code == 0
    assert fakes.calls[-1][2]["places"] == {"offload": "disk", "scorer": "torch"}


def test_resume_needs_a_run(cli: Any, fakes: Any, tmp_path: Path) -> None:
    """A missing or empty folder is exit code 4 before anything heavy is imported."""
    for path, message in ((tmp_path / "none", "is not a folder"), (tmp_path, "holds no run")):
        outcome = cli("resume", path)
        assert outcome.code == 4 and message in outcome.stderr
    assert fakes.calls == []


def test_resume_of_a_run_before_its_first_step(cli: Any, fakes: Any, run_folder: Path) -> None:
    """A folder with a config and no journal is left to `resume`, which starts it anew."""
    (run_folder / "journal.zoj").unlink()
    assert cli("resume", run_folder).code == 0
    assert fakes.calls[-1][0] == "resume"


def test_trackers_are_named_on_the_command_line(
    cli: Any, fakes: Any, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--track A,B` starts them; without it none is, whatever the run's config says."""
    opened: list[str] = []
    monkeypatch.setattr("zotune.track._open", lambda name, *_: opened.append(name) or SimpleNamespace(finish=print))
    file = run_folder / "config.yaml"
    file.write_text(file.read_text() + "track: [wandb]\n")
    outcome = cli("resume", run_folder)
    assert outcome.code == 0 and "names trackers (wandb)" in outcome.stderr and opened == []
    assert cli("resume", run_folder, "--track", "tensorboard, mlflow").code == 0 and opened == ["tensorboard", "mlflow"]
