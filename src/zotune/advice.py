"""What a run says when its course looks wrong. It only says so: nothing is changed, nothing stops."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from statistics import fmean, pvariance
from typing import final

from zotune.adapters import added_by
from zotune.config import TrainConfig
from zotune.methods import of_mode
from zotune.records import StepRecord

_LARGE = 10**7  # trained weights, from which on an Adam-like lr is surely one
_ADAM_LR = 1e-5
_ADDED = ("lora", "prefix", "prompt")
_FLAT_STEPS = 10
_FLAT_SHARE = 0.8  # of a window's steps, from which on an objective is called mostly flat
_WINDOW = 50  # steps of a mean loss
_RISE = 0.25  # of the first window's loss, above which the later one is called risen
_CLEAR = 4.0  # standard errors that a rise must have, where losses are as small as their spread
_SMOOTHER = (
    "Remedy: a larger --eps, --batch-size or --queries, or a smoother objective: token F1 in place of exact match, a "
    "reward with partial credit, the likelihood in place of the accuracy."
)


def check_lr(lr: float, trained: int, method: str) -> str | None:
    """A sentence for a learning rate that would suit backpropagation, where so many weights are trained."""
    if lr < _ADAM_LR or trained < _LARGE:
        return None
    return (
        f"Warning: lr {lr:g} is a typical value for Adam. With forward passes only, {method} on {trained:,} weights "
        "usually needs 1e-7 to 1e-6. Remedy: a smaller --lr, or `zotune tune`, which measures it."
    )


def check_mode(config: TrainConfig) -> str | None:
    """A sentence where what is added to the model is trained at a default that was made for all weights."""
    mode = added_by(config.scope)
    if config.lr is not None or mode not in _ADDED or of_mode(config.method, mode, config.blocks):
        return None
    return (
        f"Warning: {config.method} has no learning rate of its own for scope {mode}; its default is for all weights, "
        "and a prefix or LoRA usually takes a hundred times as much. Remedy: --lr, or `zotune tune`, which measures it."
    )


@final
class Advisor:
    """Watches the losses of a run. Each thing is said once."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._flat = 0
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
        missing = len(self._slopes) - sum(self._slopes)
        if self._flat == _FLAT_STEPS:
            self._once(
                "flat",
                f"Warning: both sides had the same loss in {_FLAT_STEPS} steps one after the other: the objective is "
                f"flat at this eps, so nothing is learned. {_SMOOTHER}",
            )
        elif len(self._slopes) == _WINDOW and missing >= _FLAT_SHARE * _WINDOW:
            self._once(
                "flat",
                f"Warning: both sides had the same loss in {missing} of the last {_WINDOW} steps: the objective is "
                f"mostly flat at this eps, and those steps learned nothing. {_SMOOTHER}",
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
                f"{_WINDOW} steps): lr {lr:g} is likely too large. Remedy: a tenth of it, or `zotune tune`.",
            )

    def _risen(self) -> bool:
        """Whether the loss, which may be negative, is clearly above that of the first window."""
        before, after = fmean(self._first), fmean(self._latest)
        error = math.sqrt((pvariance(self._first) + pvariance(self._latest)) / _WINDOW)
        return after - before > max(_RISE * abs(before), _CLEAR * error)

    def _once(self, name: str, text: str) -> None:
        if name not in self._told:
            self._told.add(name)
            self._say(text)
