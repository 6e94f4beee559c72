"""EGGROLL: Evolution Strategies at the Hyperscale (arXiv 2511.16652).

    for step t:
        for pair k = 1..N/2:
            A_k ~ N(0, 1)^{m x r},  B_k ~ N(0, 1)^{n x r} for every matrix W (m x n);   E_k = A_k B_k' / sqrt(r)
            F_k+ = fitness(W + sigma E_k),   F_k- = fitness(W - sigma E_k)
        s = (F - mean(F)) / std(F) over all N members
        W <- W + alpha (1/N) sum_k (s_k+ - s_k-) E_k           vectors: the same with dense noise

Symbols: N -> population, sigma -> eps, r -> rank, alpha -> lr, F = -loss: an objective for a reward returns it negated.
N forwards; y = x W' +- sigma (x B) A' / sqrt(r), so no member's weight is ever made, and the update of a step is one
matrix of rank r N / 2 in factors. With r = 1 and N = 2 the direction is that of LoZO with interval 1 and the step its
sign: s+ - s- = +-2.

Differs from the paper in: fitness is standardised over the population, not within groups of prompts; the update is
plain, where the paper lets any optimizer take it; a scope of vectors alone, which would be evolution strategies with
pairs of dense noise, is refused; lr has no factor for sigma and N (the released code's step is
sigma sqrt(N) times this one at the same lr). Defaults are ours: rank 1 and pairs are the paper's, N 32, eps 1e-3 and
lr 5e-4 follow 2509.24372.
Differs from the released code in: PyTorch, any model; noise is drawn anew in every step. The code itself was not
available to us; what is said of it comes from notes on it.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from zotune.arguments import checked
from zotune.low_rank import LowRank
from zotune.noise import Law
from zotune.optimizer import ZerothOrder
from zotune.population import Pairs
from zotune.rule import Sgd


@checked
def EGGROLL(
    model: nn.Module,
    lr: float = 5e-4,
    eps: float = 1e-3,
    *,
    population: int = 32,
    rank: int = 1,
    law: Law = "gaussian",
    seed: int = 0,
    **options: Any,
) -> ZerothOrder:
    """EGGROLL on `model`; `options` are those of `ZerothOrder`.

    Raises ConfigError for a population that is odd or below 2, and for a rank below 1.
    """
    return ZerothOrder(
        model,
        lr=lr,
        direction=LowRank(rank, 1, law, "rms", own=True),
        estimator=Pairs(eps, population),
        rule=Sgd(),
        seed=seed,
        method="eggroll",
        arguments={"eps": eps, "population": population, "rank": rank, "law": law},
        **options,
    )
