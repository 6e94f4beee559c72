"""MeZO: Fine-Tuning Language Models with Just Forward Passes (arXiv 2305.17333, NeurIPS 2023).

    for step t:
        for query j = 1..n:                         z_j ~ N(0, I), or random signs, from (seed, t, j)
            g_j = [L(theta + eps z_j) - L(theta - eps z_j)] / (2 eps)            (definition 1)
        theta <- theta - lr (1/n) sum_j g_j z_j     (definition 2, algorithm 2; lr weight_decay theta decoupled)

Symbols: eps -> eps, eta -> lr, n -> queries. Defaults: full tuning lr 1e-6, eps 1e-3 (tables 15, 16); LoRA takes lr
near 5e-5 and eps 1e-2, prefixes lr near 1e-2 and eps 1e-1.

Differs from the paper in: the Gaussian is a 4096-entry quantile table; `law="rademacher"` is offered; all n queries of
a step see the same batch; the loss reported is the mean of both sides.
Differs from the released code in: no weight is written to be perturbed, so nothing drifts; losses are averaged and
subtracted in float64; seeds are keyed, not drawn from the global generator; weight decay looks at the kind of module
instead of at name fragments; the learning-rate schedule and n > 1 work at every model size.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from zotune.direction import Dense
from zotune.estimate import TwoSided
from zotune.noise import Law
from zotune.optimizer import ZerothOrder
from zotune.rule import Sgd


def MeZO(
    model: nn.Module,
    lr: float = 1e-6,
    eps: float = 1e-3,
    *,
    law: Law = "gaussian",
    queries: int = 1,
    seed: int = 0,
    **options: Any,
) -> ZerothOrder:
    """MeZO on `model`; `options` are those of `ZerothOrder` (scope, params, weight_decay, lanes, ...)."""
    return ZerothOrder(
        model,
        lr=lr,
        direction=Dense(law),
        estimator=TwoSided(eps, queries),
        rule=Sgd(),
        seed=seed,
        method="mezo",
        arguments={"eps": eps, "law": law, "queries": queries},
        **options,
    )
