"""Who gives the losses of an objective at points: the model itself (`evaluator.py`), or a server of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

from torch import Tensor, nn

from zotune.estimate import Point

Objective = Callable[[nn.Module, Any], Tensor]
Within = Callable[[int], AbstractContextManager[None]]


def nothing(lanes: int) -> AbstractContextManager[None]:
    """Around a forward that needs nothing around it."""
    return nullcontext()


class Scorer(ABC):
    """Losses at points. Abstract: `losses` and `decide`.

    mode: whether points ride together ("lanes") or one by one, once that is decided; reason: why not together.
    max_lanes: points in one forward at most. forwards: passes of a batch at a point so far. coverage: whether a
    parameter in scope that a forward does not use is an error. must: whether points that cannot ride together are one.
    """

    mode: Literal["undecided", "lanes", "sequential"] = "undecided"
    reason: str = ""
    max_lanes: int = 1
    forwards: int = 0
    coverage: bool = True
    must: bool = False

    @abstractmethod
    def losses(self, objective: Objective, batch: Any, points: Sequence[Point], within: Within = nothing) -> Tensor:
        """Per-example losses at each point, (points, examples) float64 on the CPU; a scalar loss counts as one example.

        `within(lanes)` is entered around each forward of that many copies of the batch (reused activations, for one).
        """

    @abstractmethod
    def decide(self, objective: Objective, batch: Any, points: Sequence[Point], within: Within = nothing) -> None:
        """Settle how points are evaluated, with the run's first batch on the base weights."""
