"""Who gives the losses: any scorer will do, and an optimizer takes its numbers as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import pytest
import torch
from tests.models import batch_for, loss, tiny, train, weights
from torch import Tensor

from zotune.engines.served import Served
from zotune.estimate import Point
from zotune.evaluator import Evaluator
from zotune.noise import noise
from zotune.scorer import Objective, Scorer, Within, nothing


@final
class Told(Scorer):
    """Gives losses that it was told, whatever the model."""

    def __init__(self, losses: list[list[float]]) -> None:
        self.told = torch.tensor(losses, dtype=torch.float64)
        self.asked: list[list[float]] = []

    def losses(self, objective: Objective, batch: Any, points: Sequence[Point], within: Within = nothing) -> Tensor:
        self.asked.append([point.scale for point in points])
        return self.told

    def decide(self, objective: Objective, batch: Any, points: Sequence[Point], within: Within = nothing) -> None:
        self.mode = "sequential"


def test_a_step_follows_what_the_scorer_says() -> None:
    """Losses 3 and 1 on average at +-eps: the slope is 2 / (2 eps) by hand, and every weight moves by -lr coef z."""
    model = tiny("llama", torch.float64)
    before, optimizer = weights(model), train("mezo", model, lr=0.5, eps=0.25, seed=3)
    scorer = optimizer.evaluator = Told([[2.0, 4.0, 3.0], [1.0, 0.5, 1.5]])
    assert optimizer.step(loss, batch_for("llama")) == 2.0
    assert scorer.asked == [[0.25, -0.25]] and optimizer.probes[0].coef == 4.0
    name, weight = "model.norm.weight", model.model.norm.weight.data
    z = noise("gaussian", optimizer.probes[0].key, name, 0, weight.numel()).double()
    torch.testing.assert_close(weight, before[name] - 0.5 * 4.0 * z, rtol=0, atol=1e-14)


def test_what_a_scorer_starts_with() -> None:
    """Nothing is decided or counted, one point at a time, unused parameters are an error; `nothing` does nothing."""
    scorer = Told([])
    assert (scorer.mode, scorer.reason, scorer.max_lanes, scorer.forwards) == ("undecided", "", 1, 0)
    assert scorer.coverage is True
    with nothing(4) as found:
        assert found is None
    scorer.decide(loss, {}, [])
    assert (scorer.mode, Told([]).mode, Scorer.mode) == ("sequential", "undecided", "undecided")


def test_losses_and_decision_are_each_scorers_own() -> None:
    """The model itself and a server of it are the two that there are; half a scorer cannot be made."""
    assert Scorer.__abstractmethods__ == {"losses", "decide"}
    assert issubclass(Evaluator, Scorer) and issubclass(Served, Scorer)
    with pytest.raises(TypeError, match="abstract"):
        type("Half", (Scorer,), {"decide": Told.decide})()
