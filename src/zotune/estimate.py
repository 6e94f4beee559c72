"""Which points are evaluated, and how their losses become coefficients.

The list of probes *is* the gradient estimate: sum over probes of `coef * z(key)`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from torch import Tensor

from zotune.errors import ConfigError
from zotune.noise import Key


@final
@dataclass(frozen=True)
class Point:
    """The parameters at which a loss is evaluated: theta + scale * z(key).

    With `each`, every example has a direction of its own: example j of the batch that of query `key.query + j`.
    """

    key: Key
    scale: float
    each: bool = False


@final
@dataclass(frozen=True)
class Probe:
    """One direction, how far to go along it (loss units per unit of z), and the losses that were seen."""

    key: Key
    coef: float
    losses: tuple[float, ...]


class Estimator(ABC):
    """A plan of points for a step, and the reduction of their losses. Both are pure until `observe` ends the step."""

    eps: float
    """The radius of the perturbation."""

    per_example = False
    """Whether `probes` takes the losses example by example, (points, examples) flattened, instead of their means."""

    @abstractmethod
    def points(self, seed: int, step: int) -> list[Point]:
        """Where step `step` (from 0) of a run with `seed` evaluates the loss, in the order the journal records."""

    @abstractmethod
    def probes(self, seed: int, step: int, losses: Sequence[float]) -> list[Probe]:
        """The probes from the losses at `points(seed, step)`."""

    def check_examples(self, count: int) -> None:  # noqa: B027 - most take any number
        """Raises UserError for a step of so few examples that `probes` could make nothing of them."""

    def halve(self) -> None:
        """Halve `eps` for the steps to come."""
        self.eps /= 2

    def observe(self, seed: int, step: int, losses: Sequence[float]) -> None:  # noqa: B027 - most have no memory
        """Called after the update of every step."""

    def state(self) -> dict[str, Tensor]:
        """What is carried from step to step."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:  # noqa: B027 - most have no memory
        """Take back what `state` returned."""


def signal_to_noise(first: Sequence[float], second: Sequence[float]) -> float:
    """How clear the difference between two points is: |mean| over standard error, of the examples' differences.

    Below 1 or 2 the examples that were drawn decide its sign. NaN for fewer than two examples, inf where all agree.
    """
    differences = [a - b for a, b in zip(first, second, strict=True)]
    if len(differences) < 2:
        return math.nan
    mean = math.fsum(differences) / len(differences)
    variance = math.fsum((d - mean) ** 2 for d in differences) / (len(differences) - 1)
    error = math.sqrt(variance / len(differences))
    return abs(mean) / error if error else math.inf if mean else 0.0


def check_radius(eps: float) -> None:
    """Raises ConfigError unless `eps` is a positive number."""
    if not 0 < eps < math.inf:
        raise ConfigError(f"eps must be a positive number, got {eps}. Remedy: 1e-3 is MeZO's.")


def check_queries(queries: int, least: int = 1) -> None:
    """Raises ConfigError for fewer directions per step than `least`."""
    if queries < least:
        raise ConfigError(f"queries must be at least {least}, got {queries}. Remedy: leave it out for the default.")


@final
class TwoSided(Estimator):
    """Central differences along `queries` directions, averaged: n-SPSA (arXiv 2305.17333, definition 1, algorithm 2).

    `coef = (L(theta + eps z) - L(theta - eps z)) / (2 eps n)`; 2 n evaluations.
    """

    def __init__(self, eps: float, queries: int = 1) -> None:
        check_radius(eps)
        check_queries(queries)
        self.eps, self.queries = eps, queries

    def points(self, seed: int, step: int) -> list[Point]:
        keys = [Key(seed, step, query) for query in range(self.queries)]
        return [Point(key, side) for key in keys for side in (self.eps, -self.eps)]

    def probes(self, seed: int, step: int, losses: Sequence[float]) -> list[Probe]:
        found = []
        for query in range(self.queries):
            plus, minus = losses[2 * query], losses[2 * query + 1]
            coef = (plus - minus) / (2 * self.eps * self.queries)
            found.append(Probe(Key(seed, step, query), coef, (plus, minus)))
        return found


@final
class OneSided(Estimator):
    """Forward differences along `queries` directions from one evaluation of the centre, averaged.

    `coef = (L(theta + eps z) - L(theta)) / (eps n)`; n + 1 evaluations, the centre first. A probe's losses are those of
    its point and of the centre.
    """

    def __init__(self, eps: float, queries: int) -> None:
        check_radius(eps)
        check_queries(queries)
        self.eps, self.queries = eps, queries

    def points(self, seed: int, step: int) -> list[Point]:
        return [Point(Key(seed, step), 0.0), *(Point(Key(seed, step, q), self.eps) for q in range(self.queries))]

    def probes(self, seed: int, step: int, losses: Sequence[float]) -> list[Probe]:
        centre, share = losses[0], self.eps * self.queries
        beyond = enumerate(losses[1 : self.queries + 1])
        return [Probe(Key(seed, step, q), (loss - centre) / share, (loss, centre)) for q, loss in beyond]
