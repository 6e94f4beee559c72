"""Trackers see what the metrics hold, from a real one's files; what is wrong with one stops nothing that matters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zotune import track
from zotune.config import TrainConfig
from zotune.errors import ConfigError, UserError
from zotune.run import RunPaths
from zotune.track import Tracked, tracked, tracked_run
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


def test_what_cannot_be_opened_is_said_before_the_run(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown name, and a package that is not there."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(ConfigError, match="no tracker 'tensorbored'. Remedy: one of .*tensorboard"):
        with tracked(config(track=["tensorbored"]), Quiet()):
            pass
    with pytest.raises(UserError, match="clearml is not installed. Remedy: pip install clearml"):
        with tracked(config(track=["clearml"]), Quiet()):
            pass


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_services_are_refused_offline(config: Config, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A tracker that connects to its makers, before it is looked for; wandb may be told to write here alone."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv(name, "1")
    for service in ("wandb", "comet_ml", "clearml"):
        with pytest.raises(ConfigError, match=f"track: {service} connects to a service, and HF_HUB_OFFLINE .*Remedy"):
            with tracked(config(track=[service]), Quiet()):
                pass
    monkeypatch.setenv("WANDB_MODE", "offline")
    with pytest.raises(UserError, match="wandb is not installed"):
        with tracked(config(track=["wandb"]), Quiet()):
            pass


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the trackers that were started."""
    found: list[str] = []

    def opening(name: str, settings: TrainConfig) -> Recorder:
        found.append(name)
        return Recorder()

    monkeypatch.setattr(track, "_open", opening)
    return found


def test_a_runs_own_trackers_are_not_started_unasked(config: Config, opened: list[str]) -> None:
    """A run that goes on, perhaps somebody else's, starts those that are named now; what its config names is said."""
    train(config(track=["wandb"], steps=1), Quiet())
    paths, heard = RunPaths(config().output_dir), Heard()
    with tracked_run(paths, heard, None) as watch:
        assert watch is heard and opened == []
    assert heard.lines == [
        "The run's config names trackers (wandb); a run that goes on tells none unasked. --track wandb does."
    ]
    with tracked_run(paths, heard, ["tensorboard"]) as watch:
        assert isinstance(watch, Tracked) and opened == ["tensorboard"]
    with tracked_run(paths, heard, ["tensorboard"], leads=False) as watch:
        assert watch is heard
    with tracked_run(paths, heard, []) as watch:
        assert watch is heard and len(opened) == 1


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
