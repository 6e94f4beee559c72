"""Trackers see what the metrics hold, from a real one's files; what is wrong with one stops nothing that matters."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from zotune import track
from zotune.config import TrainConfig
from zotune.errors import ConfigError, UserError
from zotune.run import RunPaths
from zotune.track import Tracked, _own, _placed, tracked, tracked_run
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

    def count(self, *args: Any) -> None: ...

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

    def opening(name: str, settings: TrainConfig, folder: Path) -> Recorder:
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


# --- each tracker as a user starts it, in a process of its own: they keep their place from their first import on


def started(name: str, settings: TrainConfig, **environment: str) -> Path:
    """Where the tracker's files lie after `zotune train --track name`, which must leave none elsewhere."""
    settings.output_dir.parent.mkdir(exist_ok=True)
    home, here = settings.output_dir.parent / "home", settings.output_dir.parent / "here"
    for place in (home, here):
        place.mkdir()
    (here / "run.yaml").write_text(settings.to_yaml())
    mute = {"HOME": str(home), "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "TRACKIO_TELEMETRY": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "zotune", "train", "--config", "run.yaml", "--track", name],
        cwd=here, env={**os.environ, **mute, **environment}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "left out" not in done.stderr, done.stderr
    assert [path.name for path in here.iterdir()] == ["run.yaml"]
    return settings.output_dir / "track"


def holds(folder: Path, text: bytes) -> bool:
    """Whether a file below the folder has the text."""
    return any(text in path.read_bytes() for path in folder.rglob("*") if path.is_file())


def needs(name: str) -> pytest.MarkDecorator:
    """A mark for what needs a tracker's own library."""
    return pytest.mark.skipif(find_spec(name) is None, reason=f"{name} is not installed: pip install 'zotune[track]'")


FAKE = """
import json, pathlib, sys
class Config(dict):
    def update(self, values, allow_val_change): put({"config": values})
config = Config()
def put(row):
    with (place / "said.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\\n")
def init(project, name, dir=None):
    global place
    import os
    place = pathlib.Path(dir or os.environ["TRACKIO_DIR"])
    place.mkdir(parents=True, exist_ok=True)
    put({"project": project, "name": name})
    return sys.modules[__name__]
def log(values, step=None, **_): put({"step": step, **values})
def finish(): put({"end": True})
"""


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_accelerates_trackers_start(config: Config, tmp_path: Path, name: str) -> None:
    """accelerate's own classes, over a library that only writes down what it is told: start, config, steps, end."""
    fake = tmp_path / "fake"
    (fake / f"{name}-99.0.dist-info").mkdir(parents=True)
    (fake / f"{name}-99.0.dist-info" / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 99.0\n")
    (fake / f"{name}.py").write_text(FAKE)
    path = os.pathsep.join([str(fake), *sys.path])
    said = started(name, config(steps=2, output_dir=tmp_path / "place" / "run"), PYTHONPATH=path)
    for text in (b'"project": "zotune", "name": "run"', b'"method": "mezo"', b'"step": 2, "train/loss"', b'"end"'):
        assert holds(said, text), text


@needs("wandb")
def test_wandb_writes_below_the_run(config: Config, tmp_path: Path) -> None:
    """W&B without a network: its folder is the run's."""
    said = started("wandb", config(steps=2, output_dir=tmp_path / "place" / "run"))
    assert list(said.glob("wandb/offline-run-*/*.wandb")) and holds(said, b"train/loss")


@needs("trackio")
def test_trackio_writes_below_the_run(config: Config, tmp_path: Path) -> None:
    """Its database lies in the run folder, not in the user's cache."""
    said = started("trackio", config(steps=2, output_dir=tmp_path / "place" / "run"))
    assert list(said.glob("trackio/*.db")) and holds(said, b"train/loss")


@needs("mlflow")
def test_mlflow_writes_below_the_run(config: Config, tmp_path: Path) -> None:
    """Its database and its files lie in the run folder."""
    said = started("mlflow", config(steps=2, output_dir=tmp_path / "place" / "run"))
    with sqlite3.connect(said / "mlflow.db") as base:
        found = {key for (key,) in base.execute("select distinct key from metrics")}
    base.close()
    assert {"train/loss", "eval/loss"} <= found


@needs("tensorboardX")
def test_tensorboard_writes_below_the_run(config: Config, tmp_path: Path) -> None:
    """From the command line, too."""
    assert holds(started("tensorboard", config(steps=2, output_dir=tmp_path / "place" / "run")), b"train/loss")


def test_the_users_own_place_stays(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the environment says goes; what it does not say is as before afterwards."""
    monkeypatch.setenv("TRACKIO_DIR", "mine")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with _placed(["trackio", "mlflow"], tmp_path):
        assert os.environ["TRACKIO_DIR"] == "mine" and os.environ["MLFLOW_TRACKING_URI"].startswith("sqlite:///")
    assert os.environ["TRACKIO_DIR"] == "mine" and "MLFLOW_TRACKING_URI" not in os.environ
    monkeypatch.setenv("WANDB_DIR", "there")
    assert _own("wandb", "run", tmp_path) == {"name": "run", "dir": "there"}
