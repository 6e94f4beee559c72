"""Evolution Strategies at Scale: LLM Fine-Tuning Beyond Reinforcement Learning (arXiv 2509.24372, ICML 2026).

    for step t:
        for i = 1..N:   e_i ~ N(0, I);   R_i = reward(theta + sigma e_i)
        Z_i = (R_i - mean(R)) / std(R)
        theta <- theta + alpha (1/N) sum_i Z_i e_i

Symbols: N -> population, sigma -> eps, alpha -> lr, R = -loss: an objective for a reward returns it negated. It may be
a single number for the whole batch (a share of right answers, of the text that the model generates) and need not have
a gradient. Defaults from the paper: N 30, sigma 1e-3, alpha 5e-4 = sigma / 2. N forwards.

Differs from the paper in: every tensor has noise of its own, from the keyed stream; rewards that are all equal move
nothing, where the formula divides zero by zero (the released code adds 1e-8 to the deviation).
Differs from the released code in: there each tensor begins the same seed anew, so that tensors of equal shape get the
same noise; nothing is perturbed in place here, and the update is rounded stochastically in 16-bit weights.
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
def ES(
    model: nn.Module,
    lr: float = 5e-4,
    eps: float = 1e-3,
    *,
    population: int = 30,
    law: Law = "gaussian",
    seed: int = 0,
    **options: Any,
) -> ZerothOrder:
    """Evolution strategies on `model`; `options` are those of `ZerothOrder`.

    Raises ConfigError for a population below 2.
    """
    return ZerothOrder(
        model,
        lr=lr,
        direction=Dense(law),
        estimator=OneSided(eps, population, "mean"),
        rule=Sgd(),
        seed=seed,
        method="es",
        arguments={"eps": eps, "population": population, "law": law},
        **options,
    )
