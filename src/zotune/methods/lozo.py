"""LoZO: low-rank zeroth-order optimisation with lazily refreshed subspaces (arXiv 2410.07698, ICLR 2025).

    for step t:
        if t mod nu = 0:  V_l ~ N(0, 1)^{n x r} for every matrix W_l (m x n)
        U_l ~ N(0, 1)^{m x r};   Z_l = U_l V_l' (/ sqrt(r) with normalize="rms")
        c = [L(W + eps Z) - L(W - eps Z)] / (2 eps)
        W_l <- W_l - lr c Z_l            vectors: plain MeZO

Symbols: r -> rank, nu -> interval, eps -> eps. Defaults from the paper: rank 2, interval 50, eps 1e-3, lr 1e-6.

Learning rates. The paper's step is alpha c U V' / r, the released code's is lr c U V'. With normalize="none" this
method's lr is the released code's, and the paper's alpha is rank * lr. With normalize="rms" (the default) both eps and
lr act on entries of variance 1, as in MeZO, and carry over between ranks: eps_none = eps_rms / sqrt(rank) and
lr_none = lr_rms / rank give the same run.

Differs from the paper in: `normalize`; `law="rademacher"` is offered; tensors of more than two dimensions are matrices
of (first, product of the others); a scope of vectors alone, where nothing but MeZO would be left, is refused. Within a
window the change of W is one rank-r adapter (sum_t -lr c_t U_t) V'.
Differs from the released code in: V and U are pure functions of the window and the step, so the step that refreshes V
is applied along the direction it probed (there the released code's update has cosine -0.05 with its probe).
"""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from zotune.arguments import checked
from zotune.estimate import TwoSided
from zotune.low_rank import LowRank
from zotune.noise import Law
from zotune.optimizer import ZerothOrder
from zotune.rule import Sgd


@checked
def LoZO(
    model: nn.Module,
    lr: float = 1e-6,
    eps: float = 1e-3,
    *,
    rank: int = 2,
    interval: int = 50,
    normalize: Literal["none", "rms"] = "rms",
    law: Law = "gaussian",
    queries: int = 1,
    seed: int = 0,
    **options: Any,
) -> ZerothOrder:
    """LoZO on `model`; `options` are those of `ZerothOrder` (scope, params, weight_decay, lanes, ...)."""
    arguments = {
        "eps": eps,
        "rank": rank,
        "interval": interval,
        "normalize": normalize,
        "law": law,
        "queries": queries,
    }
    return ZerothOrder(
        model,
        lr=lr,
        direction=LowRank(rank, interval, law, normalize),
        estimator=TwoSided(eps, queries),
        rule=Sgd(),
        seed=seed,
        method="lozo",
        arguments=arguments,
        **options,
    )
