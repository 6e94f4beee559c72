"""FZOO: Fast Zeroth-Order Optimizer for Fine-Tuning LLMs towards Adam-Scale Speed (arXiv 2506.09034, ICLR 2026).

    for step t:
        l_0 = L(theta)
        for i = 1..N:   u_i random signs;   l_i = L(theta + eps u_i)
        sigma = std(l_1, ..., l_N)
        theta <- theta - lr 1/(N sigma) sum_i (l_i - l_0) u_i

Symbols: N -> population, eps -> eps, eta -> lr. Defaults: N 8, eps 1e-3, lr 1e-5 (the paper: eps 1e-4 to 1e-3, lr 1e-5
to 5e-5). N + 1 forwards. The step is a normalised one: it stays the same when the loss is multiplied by a number.

Differs from the paper in: the factor 1/eps that it prints is left out, as in the released code: sigma is proportional
to eps already. The paper's text was not available to us; rule and defaults were read from the released code. Losses
that are all equal move nothing, where the formula divides zero by zero.
Differs from the released code in: no loss is reused from the step before (N directions in every step; there N / 2 from
the second step on); the fused forward for parallel members is that of the lanes, for any model.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from zotune.arguments import checked
from zotune.direction import Dense
from zotune.noise import Law
from zotune.optimizer import ZerothOrder
from zotune.population import OneSided
from zotune.rule import Sgd


@checked
def FZOO(
    model: nn.Module,
    lr: float = 1e-5,
    eps: float = 1e-3,
    *,
    population: int = 8,
    law: Law = "rademacher",
    seed: int = 0,
    **options: Any,
) -> ZerothOrder:
    """FZOO on `model`; `options` are those of `ZerothOrder`. Raises ConfigError for a population below 2."""
    return ZerothOrder(
        model,
        lr=lr,
        direction=Dense(law),
        estimator=OneSided(eps, population, "centre"),
        rule=Sgd(),
        seed=seed,
        method="fzoo",
        arguments={"eps": eps, "population": population, "law": law},
        **options,
    )
