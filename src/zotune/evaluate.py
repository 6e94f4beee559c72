"""Loss and accuracy of a model on a set of examples, with the interval that the number of examples allows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from math import sqrt
from typing import Any, final

import torch
from torch import nn

from zotune.errors import DataError
from zotune.objective.base import Batch, Example, Objective, to_device

# Entered around the forward of the batch with this index: reused activations, for one.
Within = Callable[[int, Batch], AbstractContextManager[None]]

# Two-sided 95 % point of the normal distribution.
_Z = 1.959963984540054


@final
@dataclass(frozen=True, slots=True)
class Evaluation:
    """loss: mean over examples, nats.

    accuracy, correct, and low..high (Wilson's 95 % interval of the accuracy) are None without labels.
    """

    loss: float
    accuracy: float | None
    correct: int | None
    examples: int
    low: float | None
    high: float | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values: loss, accuracy, examples, low, high."""
        return {key: getattr(self, key) for key in ("loss", "accuracy", "examples", "low", "high")}


def evaluate(
    model: nn.Module, objective: Objective, examples: Sequence[Example], batch_size: int, within: Within | None = None
) -> Evaluation:
    """One forward per batch, batches of similar length, in eval mode; the modules' modes are restored.

    Raises DataError without examples. A loss that is not finite stays so in the mean.
    """
    if not examples:
        raise DataError("There are no examples to evaluate. Remedy: give a file with at least one row.")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    lengths = objective.lengths(examples)
    order = sorted(range(len(examples)), key=lengths.__getitem__)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    total, correct = 0.0, None
    with evaluating(model), torch.inference_mode():
        for start in range(0, len(order), batch_size):
            batch = to_device(objective.collate([examples[i] for i in order[start : start + batch_size]]), device)
            with within(start, batch) if within is not None else nullcontext():
                losses, right = objective.judge(model, batch)
            total += sum(losses.tolist())
            if right is not None:
                correct = (correct or 0) + int(right.sum())
    low, high = (None, None) if correct is None else wilson(correct, len(examples))
    accuracy = None if correct is None else correct / len(examples)
    return Evaluation(total / len(examples), accuracy, correct, len(examples), low, high)


def wilson(correct: int, examples: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion, within 0..1. Holds near 0 and 1 and for few examples."""
    p, n = correct / examples, examples
    centre = p + _Z**2 / (2 * n)
    spread = _Z * sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
    scale = 1 + _Z**2 / n
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode; afterwards each module has the mode it had before."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
