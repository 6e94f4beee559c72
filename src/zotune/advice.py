"""What a run says when its course looks wrong. It only says so: nothing is changed, nothing stops."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from statistics import fmean, pvariance
from typing import final

from zotune.presets import Preset, most, preset
from zotune.records import StepRecord

_LARGE = 10**7  # trained weights; of fewer it is not known which rates are too large
_FLAT_STEPS = 10
_FLAT_SHARE = 0.8  # of a window's steps, from which on an objective is called mostly flat
_WINDOW = 50  # steps of a mean loss
_RISE = 0.25  # of the first window's loss, above which the later one is called risen
_CLEAR = 4.0  # standard errors that a rise must have, where losses are as small as their spread
_SMOOTHER = (
    "Remedy: a larger --eps, --batch-size or --queries, or a smoother objective: token F1 in place of exact match, a "
    "reward with partial credit, the likelihood in place of the accuracy."
)


def check_lr(lr: float, trained: int, method: str, scope: str) -> str | None:
    """A sentence for a learning rate above all with which the method is known to learn, on so many trained weights."""
    if trained < _LARGE or lr <= most(method, trained):
        return None
    found = preset(method, scope)
    return (
        f"Warning: lr {lr:g} may suit Adam. With forward passes only, the more weights are trained the smaller it must "
        f"be: of {method} on {trained:,} no rate above {most(method, trained):.0e} is known to learn. Remedy: `zotune "
        f"tune`, which measures it, or a smaller --lr; the preset for {found.mode} is {found.lr:g}."
    )


def check_words(words: Sequence[str], tokens: Sequence[Sequence[int]]) -> str | None:
    """A sentence for label words of which several begin with the same token; `tokens`: those of each word."""
    firsts = [each[0] for each in tokens]
    same = [word for word, first in zip(words, firsts, strict=True) if firsts.count(first) > 1]
    if not same:
        return None
    return (
        f"Label words {', '.join(map(repr, same))} begin with the same token. They are told apart all the same: a word "
        "is scored whole, by the mean of its tokens. Words of one token each would take shorter forwards."
    )


@final
class Advisor:
    """Watches the losses of a run. Each thing is said once. `known`: the preset for what the run trains."""

    def __init__(self, say: Callable[[str], None], known: Preset) -> None:
        self._say, self._known = say, known
        self._flat, self._sloped = 0, False
        self._slopes: deque[bool] = deque(maxlen=_WINDOW)  # whether the latest steps had one
        self._first: list[float] = []
        self._latest: deque[float] = deque(maxlen=_WINDOW)
        self._told: set[str] = set()

    def see(self, record: StepRecord, lr: float) -> None:
        """One step: its losses at all points, and the learning rate it used."""
        several = len(record.losses) > 1 and math.isfinite(sum(record.losses))
        flat = several and max(record.losses) == min(record.losses)
        self._flat = self._flat + 1 if flat else 0
        self._slopes.append(not flat)
        if record.step == 0:
            self._sloped = not flat
        missing = len(self._slopes) - sum(self._slopes)
        if self._flat == _FLAT_STEPS:
            self._once(
                "flat",
                f"Warning: both sides had the same loss in {_FLAT_STEPS} steps one after the other: the objective is "
                f"flat at this eps, so nothing is learned.{self._driven(lr)} {_SMOOTHER}",
            )
        elif len(self._slopes) == _WINDOW and missing >= _FLAT_SHARE * _WINDOW:
            self._once(
                "flat",
                f"Warning: both sides had the same loss in {missing} of the last {_WINDOW} steps: the objective is "
                f"mostly flat at this eps, and those steps learned nothing.{self._driven(lr)} {_SMOOTHER}",
            )
        loss = fmean(record.losses)
        if not math.isfinite(loss):
            return
        if len(self._first) < _WINDOW:
            self._first.append(loss)
            return
        self._latest.append(loss)
        if len(self._latest) == _WINDOW and self._risen():
            self._once(
                "rise",
                f"Warning: the loss has risen from {fmean(self._first):.4f} to {fmean(self._latest):.4f} (means of "
                f"{_WINDOW} steps): lr {lr:g} is likely too large. Remedy: a tenth of it, or `zotune tune`; the preset "
                f"for {self._known.mode} is {self._known.lr:g}.",
            )

    def _driven(self, lr: float) -> str:
        """What else it may be where the first steps had a slope."""
        if not self._sloped:
            return ""
        return f" It was not at first: if that is no chance, lr {lr:g} has driven the weights too far."

    def _risen(self) -> bool:
        """Whether the loss, which may be negative, is clearly above that of the first window."""
        before, after = fmean(self._first), fmean(self._latest)
        error = math.sqrt((pvariance(self._first) + pvariance(self._latest)) / _WINDOW)
        return after - before > max(_RISE * abs(before), _CLEAR * error)

    def _once(self, name: str, text: str) -> None:
        if name not in self._told:
            self._told.add(name)
            self._say(text)
