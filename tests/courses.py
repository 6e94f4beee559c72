"""Runs that do more than step: their options, a stop in the midst of one, and a watcher that keeps what it hears."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zotune.config import TrainConfig
from zotune.journal import StepRecord
from zotune.journal import read as read_journal
from zotune.session import Session
from zotune.train import train
from zotune.watch import Quiet

Config = Callable[..., TrainConfig]


# What a run does beside stepping: it evaluates and takes snapshots, and its units of three rows end in one of one row.
BUSY: dict[str, Any] = {"eval_every": 3, "snapshot_every": 2, "micro_batch_size": 3, "batch_size": 6}
COURSES: dict[str, dict[str, Any]] = {
    "mezo": {},
    "signs": {"method_args": {"law": "rademacher"}, "queries": 3},
    "sparse": {"method": "sparse_mezo"},
    "lozo": {"method": "lozo", "method_args": {"rank": 2, "interval": 3}},
    "agzo": {"method": "agzo", "method_args": {"rank": 2}},
    "agzo-two-sided": {"method": "agzo", "method_args": {"sided": "two"}, "scope": "last:1", "dtype": "bfloat16"},
    "aimzo": {"method": "aimzo", "method_args": {"width": 6, "head": 2, "active": 4, "probes": 3}},
    "aimzo-reuse": {"method": "aimzo", "method_args": {"probes": 3, "eps_steps": 7}, "scope": "last:1", "eps": 1e-3},
    "curvzo": {"method": "curvzo", "method_args": {"clip": 1.5}},
    "blocks": {"method": "lozo", "method_args": {"interval": 2}, "blocks": "cycle"},
    "random-blocks": {"method": "aimzo", "method_args": {"probes": 2}, "blocks": "random:0.5"},
    "adam": {"method_args": {"moments": "adam", "history": 3}, "queries": 2},
    "residual": {"method_args": {"feedback": "residual"}},
    "growing": {"method_args": {"samples_over": 5}, "queries": 3},
    "bfloat16": {"dtype": "bfloat16"},
    "float16": {"dtype": "float16", "queries": 2},
    "linear": {"lr_schedule": "linear", "warmup_steps": 2, "weight_decay": 0.1},
    "cosine": {"lr_schedule": "cosine", "warmup_steps": 1},
    "warm": {"warmup_steps": 3},
    "reuse": {"scope": "norms&last:1"},
    "reuse-none-kept": {"scope": "last:1", "reuse_mb": 0},
    "reuse-sequential": {"scope": "last:1", "lanes": "off", "queries": 2},
    "lora": {"scope": "lora"},
    "lora-bfloat16": {"scope": "lora&last:1", "dtype": "bfloat16"},
    "lora-lozo": {"scope": "lora", "method": "lozo", "lora_rank": 2},
    "prefix": {"scope": "prefix"},
    "prefix-lozo-bfloat16": {"scope": "prefix", "method": "lozo", "dtype": "bfloat16", "prefix_tokens": 3},
    "prompt": {"family": "t5", "scope": "prompt"},
    "head": {"family": "gpt2", "scope": "head", "weight_decay": 0.1},
    "sparse-bfloat16": {"method": "sparse_mezo", "dtype": "bfloat16", "queries": 2},
    "language-model": {"label_words": None, "template": None, "eval": None},
    "tied": {"family": "gpt2", "scope": "last:1"},
    "masked": {"family": "bert", "scope": "biases&last:2"},
    "seq2seq": {"family": "t5", "scope": "last:1"},
    "said": {
        "label_words": None,
        "objective": "f1",
        "completion_column": "text",
        "max_new_tokens": 3,
        "scope": "last:1",
    },
}


class Stopped(Exception):
    """The stop of a test."""


def before_step(monkeypatch: pytest.MonkeyPatch, fault: Callable[[], Any]) -> Callable[[int | None], None]:
    """`before_step(...)(k)`: training calls `fault` when it is about to take step k; None lets it run."""
    step = Session.step

    def arm(k: int | None) -> None:
        def stepping(session: Session) -> None:
            if session.optimizer.steps == k:
                fault()
            step(session)

        monkeypatch.setattr(Session, "step", stepping)

    return arm


@pytest.fixture
def stop_before(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """`stop_before(k)`: training raises Stopped when it is about to take step k; None lets it run."""

    def stop() -> None:
        raise Stopped

    return before_step(monkeypatch, stop)


def state(run: Path) -> tuple[bytes, bytes]:
    """What must be the same to the byte."""
    return (run / "journal.zoj").read_bytes(), (run / "metrics.jsonl").read_bytes()


def course(config: Config, name: str, **options: Any) -> TrainConfig:
    """The config of a row of COURSES."""
    return config(**{**BUSY, **COURSES[name], **options})


def steps_of(run: Path) -> list[StepRecord]:
    """The steps in a run's journal."""
    return [record for record in read_journal(run / "journal.zoj")[1] if isinstance(record, StepRecord)]


@pytest.fixture
def half(config: Config, stop_before: Callable[[int | None], None]) -> Path:
    """A run that was stopped before its step 5: two snapshots, one evaluation on the way."""
    stop_before(5)
    with pytest.raises(Stopped):
        train(course(config, "mezo"), Quiet())
    stop_before(None)
    return config().output_dir


@pytest.fixture
def whole(config: Config, tmp_path: Path) -> Path:
    """The same run, undisturbed."""
    train(course(config, "mezo", output_dir=tmp_path / "whole"), Quiet())
    return tmp_path / "whole"


class Noting:
    """A watcher that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.info: dict[str, str] = {}
        self.steps: list[int] = []
        self.evals: list[int] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def header(self, info: Any) -> None:
        self.info.update(info)

    def step(self, step: int, steps: int, loss: float, seconds: float, extra: Any) -> None:
        self.steps.append(step)

    def eval(self, step: int, result: Any) -> None:
        self.evals.append(step)
