"""Accuracy and macro F1 of the chosen candidates as what is trained (MeZO, arXiv 2305.17333, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from zotune.objective.base import Batch, Example, Objective
from zotune.objective.label_words import LabelWords
from zotune.objective.options import OptionLikelihood
from zotune.objective.scoring import NONE, hits


@final
class Decided(Objective):
    """Minus the accuracy of each example (0 or -1), or minus the macro F1 of a batch (one number).

    inner: the objective that scores the candidates; the best one is the prediction. Neither has a gradient, and both
    are flat where no prediction changes within eps. Scores that are not finite predict nothing: the loss is NaN, and
    the example is counted as wrong.
    """

    def __init__(self, inner: LabelWords | OptionLikelihood, metric: Literal["accuracy", "macro_f1"]) -> None:
        evaluated = inner.for_evaluation()
        assert isinstance(evaluated, LabelWords | OptionLikelihood)
        self._inner = evaluated
        self.metric = metric
        self.set_level = metric == "macro_f1"
        self.one_forward = evaluated.one_forward
        self.says = f"{metric} of the best candidates"

    def encode(self, rows: Sequence[dict[str, Any]]) -> list[Example]:
        return self._inner.encode(rows)

    def lengths(self, examples: Sequence[Example]) -> list[int]:
        return self._inner.lengths(examples)

    def collate(self, examples: Sequence[Example]) -> Batch:
        return self._inner.collate(examples)

    def prepare(self, model: nn.Module, examples: Sequence[Example]) -> None:
        self._inner.prepare(model, examples)

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        predicted = self._inner.predict(model, batch)
        if self.metric == "macro_f1":
            found = -macro_f1(predicted, batch["label"], _classes(batch))
            return found if bool((predicted != NONE).all()) else torch.full_like(found, torch.nan)
        return _losses(_right(batch, predicted), predicted)

    def judge(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Losses (B,) and which predictions are right; for macro F1 no losses, and predicted, label, classes (B, 3)."""
        predicted = self._inner.predict(model, batch)
        if self.metric == "macro_f1":
            classes = torch.full_like(predicted, _classes(batch))
            return torch.empty(0), torch.stack([predicted, batch["label"], classes], dim=1)
        right = _right(batch, predicted)
        return _losses(right, predicted), right

    def over_set(self, found: Sequence[Sequence[int]]) -> float:
        """The macro F1 of a whole set."""
        predicted, label, classes = torch.tensor(found).unbind(1)
        return float(macro_f1(predicted, label, int(classes.max())))


def macro_f1(predicted: Tensor, label: Tensor, classes: int) -> Tensor:
    """The mean F1 of the classes that are predicted or right somewhere; predicted, label (B,) int64 -> () fp64, 0..1.

    A class that is only one of the two has F1 0 (as scikit-learn's f1_score with average="macro"). A prediction of NONE
    is of no class.
    """
    # One class more in front takes NONE, and is left out.
    said, true = (functional.one_hot(x - NONE, classes + 1)[:, 1:].double() for x in (predicted, label))
    twice, both = 2 * (said * true).sum(0), (said + true).sum(0)
    return (twice / both.clamp(min=1)).sum() / (both > 0).sum()


def _classes(batch: Batch) -> int:
    """How many candidates the examples have."""
    words: Tensor = batch["words"] if "words" in batch else batch["targets"]
    return int(words.shape[1])


def _losses(right: Tensor, predicted: Tensor) -> Tensor:
    """(B,) 0 or -1; NaN for scores that choose nothing, so that a step does not take them for a wrong answer."""
    return (-right.float()).masked_fill(predicted == NONE, torch.nan)


def _right(batch: Batch, predicted: Tensor) -> Tensor:
    """(B,) bool: whether the prediction is one of the right candidates."""
    if "right" in batch:
        return hits(batch["right"], predicted)
    label: Tensor = batch["label"]
    return predicted == label
