"""Branch: a new run that shares the first steps of another and goes on with other options."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zotune.config import FIXED, INPUTS, NEVER_FROM_FILE
from zotune.errors import ConfigError, DataError, RunError
from zotune.history.branch import branch
from zotune.history.diff import diff
from zotune.history.verify import verify
from zotune.journal import StepRecord, read
from zotune.train import resume
from zotune.watch import Quiet


def steps_of(run: Path) -> list[StepRecord]:
    return [record for record in read(run / "journal.zoj")[1] if isinstance(record, StepRecord)]


@pytest.mark.parametrize("options", [{}, {"dtype": "bfloat16", "scope": "lora", "queries": 2}])
def test_more_steps_for_a_finished_run(finished: Callable[..., Path], tmp_path: Path, options: dict[str, Any]) -> None:
    """Branched at its end with more steps, a finished run ends like one that had them from the start."""
    long = finished("long", steps=11, **options)
    short = finished("short", **options)
    found = branch(short, None, tmp_path / "more", {"steps": "11"})
    assert (found["shared_steps"], found["steps"], found["changed"]) == (7, 11, {"steps": 11})
    before = (short / "journal.zoj").read_bytes()
    ended = resume(tmp_path / "more", Quiet())
    assert ended["steps"] == 11 and steps_of(tmp_path / "more") == steps_of(long)
    assert (tmp_path / "more" / "metrics.jsonl").read_bytes() == (long / "metrics.jsonl").read_bytes()
    assert diff(tmp_path / "more", long)["first_step"] is None
    assert verify(tmp_path / "more", Quiet())["weights_sha256"] == ended["weights_sha256"]
    assert (short / "journal.zoj").read_bytes() == before


def test_another_learning_rate(run: Path, tmp_path: Path) -> None:
    """The shared steps are the parent's, the first one after them differs, the parent keeps its bytes."""
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    branch(run, 4, tmp_path / "b", {"lr": 0.02, "lr_schedule": "linear", "batch_size": 6})
    resume(tmp_path / "b", Quiet())
    assert steps_of(tmp_path / "b")[:4] == steps_of(run)[:4]
    found = diff(run, tmp_path / "b")
    assert found["first_step"] == 4 and found["a"]["lrs"] == [0.01] and found["b"]["lrs"] != [0.01]
    assert set(found["config"]) == {"lr", "lr_schedule", "batch_size"}
    assert set(found["header"]) == {"branch"} and found["header"]["branch"][1]["step"] == 4
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_other_rows(run: Path, tmp_path: Path, movies: Path) -> None:
    """Training rows may change: their hash is the new file's, and the branch resumes."""
    rows = (movies / "train.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "other.jsonl").write_text("".join(rows[3:]))
    branch(run, 2, tmp_path / "b", {"train": str(tmp_path / "other.jsonl"), "eval_every": 2})
    assert resume(tmp_path / "b", Quiet())["steps"] == 7
    with pytest.raises(DataError, match="nowhere.jsonl cannot be read"):
        branch(run, 2, tmp_path / "c", {"train": str(tmp_path / "nowhere.jsonl")})
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("name", [*FIXED, "output_dir", *NEVER_FROM_FILE])
def test_what_the_shared_steps_mean_is_fixed(run: Path, tmp_path: Path, name: str) -> None:
    """An option that the recorded losses depend on, and what only a user's own flag may set, are refused by name."""
    with pytest.raises(ConfigError, match=f"^{name} cannot be changed by a branch"):
        branch(run, 2, tmp_path / "b", {name: "x"})
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(("name", "value"), [("blocks", "cycle"), ("fold_every", "2")])
def test_what_the_header_tells_a_replay_is_fixed(
    finished: Callable[..., Path], tmp_path: Path, name: str, value: str
) -> None:
    """A branch cannot go on with a value of which the header keeps another: no replay would find its weights."""
    run = finished("windows", method="lozo", method_args={"interval": 2})
    assert name in read(run / "journal.zoj")[0]
    with pytest.raises(ConfigError, match=f"^{name} cannot be changed by a branch"):
        branch(run, 4, tmp_path / "b", {name: value})
    file = run / "config.yaml"
    file.write_text(file.read_text().replace(f"\n{name}: null\n", f"\n{name}: {value}\n"))
    with pytest.raises(RunError, match=f"was changed since the run began: {name}"):
        branch(run, 4, tmp_path / "b", {})
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("method", ["agzo", "aimzo"])
def test_inputs_that_a_method_reads_are_fixed(finished: Callable[..., Path], tmp_path: Path, method: str) -> None:
    """Where shared steps are replayed with the rows, what decides a forward's inputs is refused by name; lr is not."""
    run = finished(method, method=method, scope="last:1")
    values = {"batch_size": 2, "template": "{{ text }} so", "max_length": 16}
    for name in INPUTS:
        with pytest.raises(ConfigError, match=f"^{name} cannot be changed by a branch: {method} reads the layers'"):
            branch(run, 4, tmp_path / "b", {name: values.get(name, "x")})
    file = run / "config.yaml"
    text = file.read_text()
    file.write_text(text.replace("\nmax_length: 512\n", "\nmax_length: 16\n"))
    with pytest.raises(RunError, match="was changed since the run began: max_length"):
        branch(run, 4, tmp_path / "b", {})
    file.write_text(text)
    assert not (tmp_path / "b").exists()
    branch(run, 4, tmp_path / "b", {"lr": 0.02, "eval_every": 2, "steps": 6})
    assert resume(tmp_path / "b", Quiet())["steps"] == 6 and verify(tmp_path / "b", Quiet())["verified"]


def test_refusals(run: Path, tmp_path: Path) -> None:
    """Steps that are not there, fewer steps than shared, wrong names and values, a folder with content."""
    for step, changes, error, said in (
        (8, {}, RunError, "has 7 steps"),
        (5, {"steps": 4}, ConfigError, "steps is 4, the branch shares 5"),
        (5, {"lrr": 1}, ConfigError, "unknown option 'lrr'"),
        (5, {"lr": "fast"}, ConfigError, "lr is 'fast'"),
    ):
        with pytest.raises(error, match=said):
            branch(run, step, tmp_path / "b", changes)
    assert not (tmp_path / "b").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(RunError, match="is not empty"):
        branch(run, 5, tmp_path / "full", {})
    file = run / "config.yaml"
    file.write_text(file.read_text().replace("\nseed: 4\n", "\nseed: 5\n"))
    with pytest.raises(RunError, match="was changed since the run began: seed"):
        branch(run, 5, tmp_path / "b", {})


def test_header_names_the_parent(run: Path, tmp_path: Path) -> None:
    """The branch's header holds the step and the hash of the parent's journal, and no path."""
    import hashlib

    branch(run, 3, tmp_path / "b", {})
    header = read(tmp_path / "b" / "journal.zoj")[0]
    assert header["branch"] == {
        "step": 3, "journal_sha256": hashlib.sha256((run / "journal.zoj").read_bytes()).hexdigest(),
    }  # fmt: skip
    assert str(tmp_path) not in json.dumps(header)
