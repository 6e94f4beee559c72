"""What an optimizer asks of those who share the evaluations of its steps: processes of a group, or workers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from torch import Tensor

from zotune.estimate import Point

Losses = list[list[tuple[float, float]]]  # for each point, (loss, weight) of each example
Lanes = Literal["auto", "on", "off"]


class Sharing(ABC):
    """Who evaluates what of a step. Abstract: `deal`, `keep` and `gather`.

    examples, units: of the step's micro-batches so far, whoever evaluates them. in_step: whether processes with other
    micro-batches must run the same forwards, since each forward takes the weights of all. own: whether each process is
    given micro-batches of its own.
    """

    mode: str = ""
    in_step = False
    own = False
    examples = 0
    units = 0

    def lanes(self, asked: Lanes) -> Lanes:
        """What `lanes` is with this sharing."""
        return asked

    def check_work(self, units: int, points: int, lanes: int) -> None:  # noqa: B027 - any work will do
        """Raises ConfigError where steps of so many micro-batches and points cannot be shared."""

    def elsewhere(self, rows: int, points: int) -> bool:
        """Whether the next micro-batch is evaluated by others alone; it then counts as passed, with `rows` examples."""
        return False

    def owes_forward(self) -> bool:
        """Whether this process must run one more micro-batch, whose losses do not count, to keep step with others."""
        return False

    @contextmanager
    def deferring(self) -> Iterator[None]:
        """Around an estimate: what fails within may be kept for `gather`."""
        yield

    @abstractmethod
    def deal(self, points: Sequence[Point], batch: Any, weight: float, centre: bool, lanes: int) -> list[Point]:
        """The points at which this process evaluates the next micro-batch.

        centre: whether the losses at scale 0 are known. lanes: points in one forward.
        """

    @abstractmethod
    def keep(self, losses: Sequence[Sequence[float]]) -> None:
        """The losses at the points that `deal` gave, (points, examples)."""

    @abstractmethod
    def gather(self, step: int, weights: Callable[[], Mapping[str, Tensor]]) -> Losses:
        """The losses of the whole step, as a single process would have collected them. Ends the step's collecting."""

    def forget(self) -> None:  # noqa: B027 - nothing is collected
        """Drop what was collected of a step."""
