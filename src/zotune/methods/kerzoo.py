"""KerZOO: Kernel Function Informed Zeroth-Order Optimization (arXiv 2505.18886).

    for step t:
        for query j = 1..n:   u_j ~ N(0, I),   r_j ~ U[-1, 1]
            g_j = [L(theta + eps r_j u_j) - L(theta - eps r_j u_j)] / (2 eps) K(r_j),   K(r) = 15/4 r (5 - 7 r^2)
        theta <- theta - lr (1/n) sum_j g_j u_j

E[r K(r)] = 1 keeps the slope, E[r^3 K(r)] = 0 cancels the third-order term of the central difference: what is left is
of order eps^4 on average. The price is variance, E[(r K(r))^2] = 6.25 times MeZO's.

Symbols: eps -> eps, eta -> lr, n -> queries. Defaults are MeZO's, lr 1e-6 and eps 1e-3.

Differs from the paper in: the kernel's free factor C is 1, since it multiplies lr; r is a whole number of the run's
stream, (2 k + 1) / 2^32 - 1 with k of 32 bits, so it is never 0 and the same everywhere. Its text was not available to
us; the rule comes from public summaries of it.
Differs from the released code in: no code is known to us.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, final

import torch
from torch import nn

from zotune.arguments import checked
from zotune.direction import Dense
from zotune.errors import ConfigError
from zotune.estimate import Estimator, Point, Probe
from zotune.noise import Key, Law, words
from zotune.optimizer import ZerothOrder
from zotune.rule import Sgd

# A name that no parameter has: the radius shares no bits with a direction.
_RADIUS = "(radius)"


@lru_cache(maxsize=1024)
def radius(key: Key) -> float:
    """r in (-1, 1), one of 2**32 values at equal distances, symmetric about 0; exact in float64."""
    bits = int(words(key, _RADIUS, torch.zeros(1, dtype=torch.int64))[0, 0]) & 0xFFFFFFFF
    return (2 * bits + 1) / 2**32 - 1


def kernel(r: float) -> float:
    """K(r) = 15/4 r (5 - 7 r^2)."""
    return 3.75 * r * (5 - 7 * r * r)


@final
class Kernel(Estimator):
    """Central differences at random radii, weighed by the kernel and averaged; 2 n evaluations."""

    def __init__(self, eps: float, queries: int) -> None:
        if not 0 < eps < math.inf:
            raise ConfigError(f"eps must be a positive number, got {eps}. Remedy: 1e-3 is MeZO's.")
        if queries < 1:
            raise ConfigError(f"queries must be at least 1, got {queries}. Remedy: 1 is MeZO's.")
        self.eps, self.queries = eps, queries

    def points(self, seed: int, step: int) -> list[Point]:
        keys = [Key(seed, step, query) for query in range(self.queries)]
        return [Point(key, side * self.eps * radius(key)) for key in keys for side in (1, -1)]

    def probes(self, seed: int, step: int, losses: Sequence[float]) -> list[Probe]:
        found = []
        for query in range(self.queries):
            key, (plus, minus) = Key(seed, step, query), losses[2 * query : 2 * query + 2]
            coef = (plus - minus) / (2 * self.eps * self.queries) * kernel(radius(key))
            found.append(Probe(key, coef, (plus, minus)))
        return found


@checked
def KerZOO(
    model: nn.Module,
    lr: float = 1e-6,
    eps: float = 1e-3,
    *,
    law: Law = "gaussian",
    queries: int = 1,
    seed: int = 0,
    **options: Any,
) -> ZerothOrder:
    """KerZOO on `model`; `options` are those of `ZerothOrder`. Raises ConfigError for no radius or no query."""
    return ZerothOrder(
        model,
        lr=lr,
        direction=Dense(law),
        estimator=Kernel(eps, queries),
        rule=Sgd(),
        seed=seed,
        method="kerzoo",
        arguments={"eps": eps, "law": law, "queries": queries},
        **options,
    )
