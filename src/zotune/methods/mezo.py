"""MeZO: Fine-Tuning Language Models with Just Forward Passes (arXiv 2305.17333, NeurIPS 2023).

    for step t:
        for query j = 1..n:                         z_j ~ N(0, I), or random signs, from (seed, t, j)
            g_j = [L(theta + eps z_j) - L(theta - eps z_j)] / (2 eps)            (definition 1)
        theta <- theta - lr (1/n) sum_j g_j z_j     (definition 2, algorithm 2; lr weight_decay theta decoupled)

Symbols: eps -> eps, eta -> lr, n -> queries. Defaults: full tuning lr 1e-6, eps 1e-3 (tables 15, 16); LoRA takes lr
near 5e-5 and eps 1e-2, prefixes lr near 1e-2 and eps 1e-1. `samples_over`, `feedback`, `moments` and `scaling` are the
variants of its appendices (`mezo_variants.py`), none of which the paper found better.

Differs from the paper in: the Gaussian is a 4096-entry quantile table; `law="rademacher"` is offered; all n queries of
a step see the same batch; the loss reported is the mean of both sides.
Differs from the released code in: no weight is written to be perturbed, so nothing drifts; losses are averaged and
subtracted in float64; seeds are keyed, not drawn from the global generator; weight decay looks at the kind of module
instead of at name fragments; the learning-rate schedule and n > 1 work at every model size.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from zotune.arguments import checked
from zotune.direction import Dense
from zotune.errors import ConfigError
from zotune.estimate import Estimator, TwoSided
from zotune.methods.mezo_variants import GrowingSamples, Moments, PastProbes, Rescaled, ResidualFeedback, Scaling
from zotune.noise import Law
from zotune.optimizer import ZerothOrder
from zotune.rule import Sgd


@checked
def MeZO(
    model: nn.Module,
    lr: float = 1e-6,
    eps: float = 1e-3,
    *,
    law: Law = "gaussian",
    queries: int = 1,
    samples_over: int | None = None,
    feedback: Literal["two_sided", "residual"] = "two_sided",
    moments: Moments | None = None,
    beta1: float = 0.9,
    beta2: float = 0.999,
    history: int | None = None,
    scaling: Scaling | None = None,
    scales: dict[str, float] | None = None,
    seed: int = 0,
    **options: Any,
) -> ZerothOrder:
    """MeZO on `model`; `options` are those of `ZerothOrder` (scope, params, weight_decay, lanes, ...).

    Variants: `samples_over` steps until there are `queries` directions; one-point `feedback`; `moments` from `history`
    past steps; `scaling` by the weights' norms or by `scales`. Raises ConfigError for numbers out of their range.
    """
    if scales is not None and scaling is None:
        raise ConfigError("scales needs scaling. Remedy: scaling='variance' or 'expectation'.")
    arguments = {
        "eps": eps,
        "law": law,
        "queries": queries,
        "samples_over": samples_over,
        "feedback": feedback,
        "moments": moments,
        "beta1": beta1,
        "beta2": beta2,
        "history": history,
        "scaling": scaling,
        "scales": scales,
    }
    return ZerothOrder(
        model,
        lr=lr,
        direction=Dense(law) if scaling is None else Rescaled(law, scaling, scales),
        estimator=_estimator(eps, queries, samples_over, feedback),
        rule=Sgd() if moments is None else PastProbes(moments, beta1, beta2, history, queries=queries),
        seed=seed,
        method="mezo",
        arguments=arguments,
        **options,
    )


def _estimator(eps: float, queries: int, samples_over: int | None, feedback: str) -> Estimator:
    if feedback == "residual":
        if queries != 1 or samples_over is not None:
            raise ConfigError("one-point feedback has one query a step. Remedy: leave queries and samples_over out.")
        return ResidualFeedback(eps)
    return TwoSided(eps, queries) if samples_over is None else GrowingSamples(eps, queries, samples_over)
