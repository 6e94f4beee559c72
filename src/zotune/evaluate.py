"""Loss and accuracy of a model on a set of examples, with the interval that the number of examples allows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from math import sqrt
from typing import Any, final

import torch
from torch import Tensor, nn

from zotune.distributed.sharded import no_gradient
from zotune.errors import DataError
from zotune.objective.base import Batch, Example, Objective, to_device

# Entered around the forward of the batch with this index: reused activations, for one.
Within = Callable[[int, Batch], AbstractContextManager[None]]

# Two-sided 95 % point of the normal distribution.
_Z = 1.959963984540054
# Scores of an example that lie within 0..1.
_BOUNDED = ("f1", "exact_match")


@final
@dataclass(frozen=True, slots=True)
class Evaluation:
    """loss: mean over examples, nats.

    accuracy, correct, and low..high (Wilson's 95 % interval of the accuracy) are None without labels.
    score: the objective's metric where that is no accuracy: a mean over examples (f1, exact_match, reward) with
    low..high from its spread, or one number of the whole set (macro_f1, metric) without; metric: its name. parts: what
    else is measured, such as the mean of each of several rewards, over the examples that it applies to; None where
    there are none.
    """

    loss: float
    accuracy: float | None
    correct: int | None
    examples: int
    low: float | None
    high: float | None
    score: float | None = None
    metric: str = "accuracy"
    parts: Mapping[str, float | None] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain values: loss, accuracy, examples, low, high; the score under its metric's name where there is one, and
        its parts under their names, those of a reward as reward_NAME.
        """
        found = {key: getattr(self, key) for key in ("loss", "accuracy", "examples", "low", "high")}
        before = "" if self.metric == "accuracy" else "reward_"
        found |= {f"{before}{name}": value for name, value in self.parts.items()}
        return found if self.score is None else found | {self.metric: self.score}


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
    total, found = 0.0, list[Any]()
    with evaluating(model), no_gradient(model):
        for start in range(0, len(order), batch_size):
            batch = to_device(objective.collate([examples[i] for i in order[start : start + batch_size]]), device)
            with within(start, batch) if within is not None else nullcontext():
                losses, right = objective.judge(model, batch)
            total += sum(losses.tolist())
            if right is not None:
                found += right.tolist() if isinstance(right, Tensor) else right
    loss, count = total / len(examples), len(examples)
    if objective.set_level:
        in_order = [found[place] for place in sorted(range(count), key=order.__getitem__)]
        score = objective.over_set(in_order)
        return Evaluation(-score, None, None, count, None, None, score, objective.metric)
    if not found:
        return Evaluation(loss, None, None, count, None, None)
    parts = _means(objective.parts, found)
    scores = [row[0] for row in found] if objective.parts else found
    if objective.metric != "accuracy":
        mean, bounded = sum(scores) / len(scores), objective.metric in _BOUNDED
        return Evaluation(loss, None, None, count, *_around(scores, bounded), mean, objective.metric, parts)
    correct = sum(scores)
    return Evaluation(loss, correct / count, correct, count, *wilson(correct, count), parts=parts)


def _means(names: Sequence[str], found: Sequence[Any]) -> dict[str, float | None]:
    """The mean of each part over the examples that it applies to; an example's row begins with their sum."""
    means: dict[str, float | None] = {}
    for place, name in enumerate(names, start=1):
        values = [row[place] for row in found if row[place] is not None]
        means[name] = sum(values) / len(values) if values else None
    return means


def _around(scores: Sequence[float], bounded: bool) -> tuple[float | None, float | None]:
    """A 95 % interval of a mean of scores, from their spread; within 0..1 where the scores are.

    For a single score all of 0..1, or nothing.
    """
    mean, n = sum(scores) / len(scores), len(scores)
    if n < 2:
        return (0.0, 1.0) if bounded else (None, None)
    spread = _Z * sqrt(sum((score - mean) ** 2 for score in scores) / (n - 1) / n)
    return (max(0.0, mean - spread), min(1.0, mean + spread)) if bounded else (mean - spread, mean + spread)


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
