"""The demo from end to end, on a tiny model and made-up sentences."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from zotune.config import TrainConfig
from zotune.demo import run as demo_run
from zotune.errors import RunError, UserError
from zotune.methods import METHODS
from zotune.watch import Quiet


class Told:
    """A watcher that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.steps: list[int] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def header(self, info: Any) -> None:
        self.said += info.values()

    def step(self, step: int, steps: int, loss: float, seconds: float, extra: Any) -> None:
        self.steps.append(step)

    def eval(self, step: int, result: Any) -> None:
        self.said.append(f"{step}: {sorted(result)}")


@pytest.fixture
def assets(tiny: Callable[[str], Path], movies: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The model and the rows of other tests in place of what would be downloaded."""
    rows = SimpleNamespace(train=movies / "train.jsonl", dev=movies / "eval.jsonl", test=movies / "eval.jsonl")
    monkeypatch.setattr(demo_run, "demo_model", lambda say: tiny("deep"))
    monkeypatch.setattr(demo_run, "demo_data", lambda say: rows)
    monkeypatch.setattr(demo_run, "SETTINGS", {**demo_run.SETTINGS, "scope": "norms&last:2", "steps": 5})
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


PROMISED = {
    "accuracy_before", "accuracy_after", "eval_examples", "train_seconds", "peak_memory_bytes", "journal_bytes",
    "weights_sha256", "replay_sha256",
}  # fmt: skip


@pytest.mark.usefixtures("assets")
def test_demo(tmp_path: Path) -> None:
    """It trains, evaluates before and after, replays to the same hash, and says so in words and figures."""
    watch = Told()
    result = demo_run.demo(watch, seed=3, steps=4, output_dir=tmp_path / "out", threads=1)
    assert set(result) >= PROMISED and json.loads(json.dumps(result)) == result
    assert result["weights_sha256"] == result["replay_sha256"] and len(result["replay_sha256"]) == 64
    assert result["eval_examples"] == 10 and result["steps"] == 4 == len(watch.steps)
    run = Path(result["run"])
    assert run.is_relative_to(tmp_path / "out")
    assert result["journal_bytes"] == (run / "journal.zoj").stat().st_size
    assert result["peak_memory_bytes"] > 50e6 and result["train_seconds"] > 0
    text = "\n".join(watch.said)
    assert "the same hash" in watch.said[-1] and f"{result['journal_bytes']:,} bytes" in watch.said[-1]
    assert "6 blocks below the scope" in text and "0: ['accuracy'" in text and "4: ['accuracy'" in text
    assert "seed: 3" in (run / "config.yaml").read_text().splitlines()


@pytest.mark.usefixtures("assets")
def test_seed_and_steps(tmp_path: Path) -> None:
    """The same seed is the same run, another seed another one; without a folder one is made."""
    one = demo_run.demo(Quiet(), seed=1, output_dir=tmp_path / "1", threads=1)
    same = demo_run.demo(Quiet(), seed=1, output_dir=tmp_path / "2", threads=1)
    other = demo_run.demo(Quiet(), seed=2, threads=1)
    assert one["steps"] == 5
    assert one["weights_sha256"] == same["weights_sha256"] != other["weights_sha256"]
    assert Path(other["run"]).exists()


@pytest.mark.usefixtures("assets")
def test_a_used_folder_is_not_written_over(tmp_path: Path) -> None:
    """The second demo in one folder says how to go on, and the first one's journal stays."""
    first = demo_run.demo(Quiet(), output_dir=tmp_path, threads=1)
    with pytest.raises(RunError, match="holds a run already"):
        demo_run.demo(Quiet(), seed=1, output_dir=tmp_path, threads=1)
    assert (Path(first["run"]) / "journal.zoj").stat().st_size == first["journal_bytes"]


def test_what_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The reason reaches the user, and no run is begun."""

    def refuse(say: Any) -> Path:
        raise UserError("the model cannot be had. Remedy: go online.")

    monkeypatch.setattr(demo_run, "demo_model", refuse)
    with pytest.raises(UserError, match="cannot be had"):
        demo_run.demo(Quiet(), output_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_settings_are_options(tmp_path: Path) -> None:
    """What the demo sets are options that exist, for a method that exists, with the promised prompt."""
    rows = {"train": tmp_path / "a", "eval": tmp_path / "b", "output_dir": tmp_path}
    config = TrainConfig(model="m", **rows, **demo_run.SETTINGS)
    assert set(config.method_args) <= set(inspect.signature(METHODS[config.method].build).parameters)
    assert config.template == "{{ text }} It was" and config.label_words == ["terrible", "great"]
    assert demo_run.TEST_ROWS >= 500
