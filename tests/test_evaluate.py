"""evaluate: means and counts over all examples, whatever the batches; the model is left as it was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zotune.errors import DataError
from zotune.evaluate import evaluate, evaluating, wilson
from zotune.objective.base import Batch, Example, Objective


class Sums(Objective):
    """Loss of an example: the sum of its tokens plus the model's answer. Right if the sum is even."""

    def __init__(self, judges: bool) -> None:
        self.judges = judges
        self.widths: list[int] = []
        self.seen: list[tuple[bool, bool]] = []

    def encode(self, rows: Sequence[dict[str, Any]]) -> list[Example]:
        """Rows hold their tokens."""
        return [Example(tuple(row["ids"]), ((0,),)) for row in rows]

    def lengths(self, examples: Sequence[Example]) -> list[int]:
        """Prompt lengths."""
        return [len(example.prompt) for example in examples]

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Right padding with zeros."""
        width = max(self.lengths(examples))
        self.widths.append(width)
        return {"ids": torch.tensor([[*e.prompt, *[0] * (width - len(e.prompt))] for e in examples])}

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """(B,) fp32."""
        self.seen.append((model.training, torch.is_inference_mode_enabled()))
        out: Tensor = batch["ids"].sum(1).float() + model(torch.zeros(1))
        return out

    def judge(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Even sums are right."""
        return self(model, batch), batch["ids"].sum(1) % 2 == 0 if self.judges else None


ROWS = [{"ids": list(range(1, n + 1))} for n in (5, 1, 4, 2, 3)]


@pytest.mark.parametrize("batch_size", [1, 2, 5, 9])
def test_means_do_not_depend_on_batches(batch_size: int) -> None:
    """Sums 15, 1, 10, 3, 6: mean 7, two even."""
    objective, model = Sums(judges=True), nn.Dropout(0.5)
    result = evaluate(model, objective, objective.encode(ROWS), batch_size)
    assert (result.loss, result.correct, result.accuracy, result.examples) == (7.0, 2, 0.4, 5)
    assert (result.low, result.high) == wilson(2, 5)
    assert objective.widths == sorted(objective.widths) and len(objective.widths) == -(-5 // batch_size)
    assert set(objective.seen) == {(False, True)}


class Twice(Sums):
    """Right if the sum is even, and beside that if it is above 5."""

    parts = ("large",)

    def judge(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """(B, 2): the metric's own value first."""
        sums = batch["ids"].sum(1)
        return self(model, batch), torch.stack([sums % 2 == 0, sums > 5], dim=1)


def test_an_accuracy_by_another_rule_beside_it() -> None:
    """The first column is the accuracy, with its interval; the mean of the other stands under its own name."""
    objective = Twice(judges=True)
    result = evaluate(nn.Identity(), objective, objective.encode(ROWS), 2)
    assert (result.accuracy, result.correct, result.low) == (0.4, 2, wilson(2, 5)[0])
    assert result.as_dict()["large"] == 0.6 and result.as_dict()["accuracy"] == 0.4


def test_without_predictions() -> None:
    """A loss alone."""
    objective = Sums(judges=False)
    result = evaluate(nn.Identity(), objective, objective.encode(ROWS), 2)
    assert result.loss == 7.0
    assert (result.accuracy, result.correct, result.low, result.high) == (None, None, None, None)


def test_modes_are_restored() -> None:
    """Each module keeps its own mode, after success and after an error."""
    model = nn.Sequential(nn.Dropout(), nn.Dropout())
    model[0].eval()
    modes = [module.training for module in model.modules()]
    with pytest.raises(RuntimeError, match="stop"), evaluating(model):
        assert not any(module.training for module in model.modules())
        raise RuntimeError("stop")
    assert [module.training for module in model.modules()] == modes == [True, False, True]


def test_non_finite_losses_are_not_hidden() -> None:
    """One NaN makes the mean NaN."""
    objective = Sums(judges=True)

    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            """NaN."""
            return x * float("nan")

    assert evaluate(Broken(), objective, objective.encode(ROWS), 2).loss != 7.0


def test_no_examples() -> None:
    """Nothing to evaluate is an error, and so is a batch of nothing."""
    objective = Sums(judges=True)
    with pytest.raises(DataError, match="no examples"):
        evaluate(nn.Identity(), objective, [], 2)
    with pytest.raises(ValueError, match="batch_size"):
        evaluate(nn.Identity(), objective, objective.encode(ROWS), 0)


@pytest.mark.parametrize(
    ("correct", "examples", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (50, 100, 0.4038, 0.5962), (1, 1, 0.2065, 1.0)],
)
def test_wilson(correct: int, examples: int, low: float, high: float) -> None:
    """Published values, to four digits."""
    assert wilson(correct, examples) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))
