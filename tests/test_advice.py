"""Warnings of a run: said where they hold, once, and nowhere else."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from zotune.advice import Advisor, check_lr, check_words
from zotune.config import TrainConfig
from zotune.methods import METHODS
from zotune.presets import Preset, preset, tuned_for
from zotune.records import StepRecord
from zotune.train import train
from zotune.watch import Console


@pytest.mark.parametrize(
    ("lr", "trained", "warns"),
    [
        (2e-5, 13_000_000_000, True), (2e-5, 7_000_000_000, True), (1e-6, 13_000_000_000, False),
        (1e-3, 135_000_000, True), (1e-4, 135_000_000, False), (2e-5, 135_000_000, False), (4e-3, 7_488, False),
        (5e-5, 900_000, False),
    ],
)  # fmt: skip
def test_backprop_lr(lr: float, trained: int, warns: bool) -> None:
    """A rate above what so many weights are known to bear is called out; the fewer they are the more they bear."""
    said = check_lr(lr, trained, "mezo", "full")
    assert (said is not None) == warns
    if said:
        assert f"lr {lr:g} may suit Adam" in said and "Remedy: `zotune tune`" in said
        assert "the preset for full is 1e-06" in said


def test_label_words_with_one_beginning(config: Callable[..., TrainConfig], capsys: pytest.CaptureFixture[str]) -> None:
    """Those that begin alike are named, by a run too; words of other beginnings are not."""
    said = check_words(["terrible", "great", "terrific"], [(5, 6), (9,), (5, 7)])
    assert said is not None and said.startswith("Label words 'terrible', 'terrific' begin with the same token.")
    assert check_words(["terrible", "great"], [(5, 6), (9,)]) is None
    train(config(label_words=["great good", "great fine"], steps=1, eval=None), Console())
    assert "Label words 'great good', 'great fine' begin with the same token" in capsys.readouterr().err


def test_papers_own_rates_are_not_called_out() -> None:
    """A method whose steps have a scale of their own is measured by that scale."""
    for name in METHODS:
        assert check_lr(preset(name, "full").lr, 13_000_000_000, name, "full") is None, name
    assert check_lr(1.0, 13_000_000_000, "fzoo", "full") is not None


def test_a_run_says_it(
    config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`train` itself warns, below its header, but not of what `zotune tune` measured."""
    monkeypatch.setattr("zotune.advice._LARGE", 1000)
    settings = config(lr=1e3, steps=1, eval=None)
    for tuned, warns in ((None, True), (1e3, False), (1e2, True)):
        words = None if tuned is None else tuned_for(tuned, settings.method, settings.scope)
        train(replace(settings, tuned=words, output_dir=settings.output_dir / str(tuned)), Console())
        assert ("lr 1000 may suit Adam" in capsys.readouterr().err) == warns


def told(losses: list[tuple[float, ...]]) -> list[str]:
    said: list[str] = []
    advisor = Advisor(said.append, Preset("lora", 1e-4, 1e-2))
    for step, seen in enumerate(losses):
        advisor.see(StepRecord(step, (0.1,), seen), 0.1)
    return said


def test_flat_objective() -> None:
    """Ten equal pairs one after the other, not nine, and not two times five."""
    flat, sloped = (0.5, 0.5), (0.5, 0.51)
    assert told([flat] * 9 + [sloped] + [flat] * 9) == []
    said = told([sloped] + [flat] * 40)
    assert len(said) == 1 and "flat at this eps" in said[0] and "larger --eps" in said[0]
    assert "It was not at first: if that is no chance, lr 0.1 has driven the weights too far." in said[0]
    assert "at first" not in told([flat] * 40)[0]


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
    assert said[0].endswith("the preset for lora is 0.0001.")


def test_losses_that_are_not_finite_are_left_to_the_optimizer() -> None:
    """They do not upset the means."""
    assert told([(1.0, 1.1)] * 60 + [(math.inf, 1.0)] + [(1.0, 1.1)] * 60) == []
