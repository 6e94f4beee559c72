"""Warnings of a run: said where they hold, once, and nowhere else."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zotune.advice import Advisor, check_lr, check_mode
from zotune.config import TrainConfig
from zotune.records import StepRecord
from zotune.train import train
from zotune.watch import Console


@pytest.mark.parametrize(
    ("lr", "trained", "warns"),
    [(2e-5, 135_000_000, True), (1e-6, 135_000_000, False), (4e-3, 7_488, False), (5e-5, 900_000, False)],
)
def test_backprop_lr(lr: float, trained: int, warns: bool) -> None:
    """An Adam-like lr on many weights is called out; larger ones are right for small scopes."""
    said = check_lr(lr, trained, "mezo")
    assert (said is not None) == warns
    if said:
        assert "lr 2e-05 is a typical value for Adam" in said and "1e-7 to 1e-6" in said and "Remedy" in said


@pytest.mark.parametrize(
    ("options", "warns"),
    [
        ({"scope": "lora", "method": "lozo"}, True),
        ({"scope": "prompt"}, True),
        ({"scope": "lora", "blocks": "atoms"}, True),
        ({"scope": "lora"}, False),
        ({"scope": "prefix"}, False),
        ({"scope": "lora", "method": "lozo", "lr": 1e-4}, False),
        ({"scope": "head"}, False),
        ({"scope": "norms", "method": "lozo"}, False),
    ],
)
def test_a_default_for_all_weights(options: dict[str, Any], warns: bool) -> None:
    """Said where something is added to the model and neither the user nor the paper has a rate for it."""
    said = check_mode(TrainConfig(model="m", train=Path("t"), output_dir=Path("o"), **options))
    assert (said is not None) == warns
    if said:
        method, scope = options.get("method", "mezo"), options["scope"]
        assert said.startswith(f"Warning: {method} has no learning rate of its own for scope {scope}; its default")


def test_a_run_says_it(
    config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`train` itself warns, below its header."""
    monkeypatch.setattr("zotune.advice._LARGE", 1000)
    train(config(lr=2e-5, steps=1, eval=None), Console())
    assert "lr 2e-05 is a typical value for Adam" in capsys.readouterr().err
    train(config(lr=1e-7, steps=1, eval=None, output_dir=config().output_dir / "other"), Console())
    assert "Adam" not in capsys.readouterr().err


def told(losses: list[tuple[float, ...]]) -> list[str]:
    said: list[str] = []
    advisor = Advisor(said.append)
    for step, seen in enumerate(losses):
        advisor.see(StepRecord(step, (0.1,), seen), 0.1)
    return said


def test_flat_objective() -> None:
    """Ten equal pairs one after the other, not nine, and not two times five."""
    flat, sloped = (0.5, 0.5), (0.5, 0.51)
    assert told([flat] * 9 + [sloped] + [flat] * 9) == []
    said = told([sloped] + [flat] * 40)
    assert len(said) == 1 and "flat at this eps" in said[0] and "larger --eps" in said[0]


def test_mostly_flat_objective() -> None:
    """Forty of fifty steps without a slope are called out, though never ten in a row; thirty are not."""
    flat, sloped = (0.5, 0.5), (0.5, 0.51)
    assert told(([sloped] * 2 + [flat] * 3) * 20) == []
    said = told(([sloped] + [flat] * 5) * 20)
    assert len(said) == 1 and "in 41 of the last 50 steps" in said[0] and "token F1 in place of exact match" in said[0]


def test_scores_are_negative_losses() -> None:
    """A score that rises or stays is no risen loss, one that falls by half is; around 0 noise alone is none."""
    assert told([(-0.5, -0.51)] * 200) == []
    assert told([(-0.5 - step / 400, -0.5) for step in range(200)]) == []
    assert "the loss has risen from" in told([(-0.5 + step / 400, -0.5) for step in range(300)])[0]
    assert told([(0.2 * math.sin(7 * step), 0.21) for step in range(400)]) == []


def test_rising_loss() -> None:
    """A loss that ends a quarter above its beginning is called out once; noise and a fall are not."""
    steady = [(1.0 + 0.1 * (-1) ** step, 1.0) for step in range(300)]
    assert told(steady) == []
    assert told([(2.0 - step / 200, 2.0) for step in range(200)]) == []
    said = told([(1.0 + step / 100, 1.0) for step in range(300)])
    assert len(said) == 1 and "the loss has risen from" in said[0] and "lr 0.1 is likely too large" in said[0]


def test_losses_that_are_not_finite_are_left_to_the_optimizer() -> None:
    """They do not upset the means."""
    assert told([(1.0, 1.1)] * 60 + [(math.inf, 1.0)] + [(1.0, 1.1)] * 60) == []
