"""Trackers see what the metrics hold, from a real one's files; what is wrong with one stops nothing that matters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zotune.config import TrainConfig
from zotune.errors import ConfigError, UserError
from zotune.track import Tracked, tracked
from zotune.train import train
from zotune.watch import Quiet

Config = Callable[..., TrainConfig]


class Heard:
    """A watch that keeps what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def header(self, info: Any) -> None: ...

    def step(self, *args: Any) -> None: ...

    def eval(self, *args: Any) -> None: ...


class Recorder:
    """Stands for a tracker: keeps what it is given, and fails from step `fails` on."""

    def __init__(self, fails: int = 10**9) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.fails, self.finished = fails, False

    def log(self, values: dict[str, float], step: int) -> None:
        if step >= self.fails:
            raise ConnectionError("no route to host")
        self.rows.append((step, values))

    def finish(self) -> None:
        self.finished = True


def test_a_run_is_told_in_full(config: Config) -> None:
    """Each step's loss as in the metrics, each evaluation, and an end."""
    recorder = Recorder()
    both = Tracked(Quiet(), {"recorder": recorder})
    result = train(config(steps=3), both)
    both.finish()
    steps = {step: values for step, values in recorder.rows if "train/loss" in values}
    assert sorted(steps) == [1, 2, 3] and {"train/loss", "train/seconds", "train/g"} <= set(steps[1])
    evals = [values for _, values in recorder.rows if "eval/loss" in values]
    assert evals[0]["eval/loss"] == result["loss_before"] and evals[-1]["eval/loss"] == result["loss_after"]
    assert recorder.finished


def test_a_tracker_that_fails_is_left_out(config: Config) -> None:
    """Said once; the run ends as it would have, and the other tracker has everything."""
    heard, bad, good = Heard(), Recorder(fails=2), Recorder()
    result = train(config(steps=4), Tracked(heard, {"bad": bad, "good": good}))
    assert result["steps"] == 4 and max(step for step, _ in good.rows) == 4
    assert [line for line in heard.lines if "bad failed" in line] == [
        "bad failed and is left out from here on: ConnectionError: no route to host"
    ]
    assert max(step for step, _ in bad.rows) == 1


def test_what_cannot_be_opened_is_said_before_the_run(config: Config) -> None:
    """An unknown name, and a package that is not there."""
    with pytest.raises(ConfigError, match="no tracker 'tensorbored'. Remedy: one of .*tensorboard"):
        with tracked(config(track=["tensorbored"]), Quiet()):
            pass
    with pytest.raises(UserError, match="clearml is not installed. Remedy: pip install clearml"):
        with tracked(config(track=["clearml"]), Quiet()):
            pass


def test_without_trackers_nothing_is_wrapped(config: Config) -> None:
    """The watch is passed on as it is, and accelerate is not asked for."""
    watch = Quiet()
    with tracked(config(), watch) as same:
        assert same is watch


def test_tensorboard_files(config: Config, tmp_path: Path) -> None:
    """A real tracker writes below the run folder what was logged; the course of the run does not know of it."""
    pytest.importorskip("tensorboardX", reason="no tracker is installed")
    settings = config(track=["tensorboard"], steps=2)
    with tracked(settings, Quiet()) as watch:
        train(settings, watch)
    files = list((settings.output_dir / "track").rglob("events.*"))
    assert files and any(b"train/loss" in path.read_bytes() for path in files)
    assert "track" not in settings.course()
    said = (path.read_text() for path in (settings.output_dir / "track").rglob("hparams.yml"))
    assert all("train: train.jsonl" in text and str(tmp_path) not in text for text in said)
