"""LoZO-M: LoZO with momentum in the lazy basis (arXiv 2410.07698, ICLR 2025).

    for step t:
        if t mod nu = 0:  V_new ~ N(0, 1)^{n x r} for every matrix W (m x n);   N <- N V_old' V_new / n
        U ~ N(0, 1)^{m x r};   Z = U V' (/ sqrt(r) with normalize="rms")
        c = [L(W + eps Z) - L(W - eps Z)] / (2 eps)
        N <- beta N + (1 - beta) c U (/ sqrt(r));    W <- W - lr N V'
        vectors: MeZO with a moving average of c z in the same way

Symbols: as in `lozo.py`; beta -> beta. Defaults: those of LoZO, beta 0.9. State: N, m x r for each matrix.

Learning rates. A moving average leaves the scale of the step as it is, so lr is LoZO's lr: beta 0 is LoZO. The map of
`lozo.py` holds: with normalize="none" lr is the released code's and the paper's alpha is rank * lr; eps_none =
eps_rms / sqrt(rank) and lr_none = lr_rms / rank give the same run as normalize="rms" (the default).

Differs from the paper in: what LoZO differs in.
Differs from the released code in: N begins at zero, so the first step is (1 - beta) c U where the code takes c U; V_old
is drawn again from its window's number instead of being stored; the refresh step is applied along what it probed.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from zotune.arguments import checked
from zotune.estimate import TwoSided
from zotune.low_rank import LowRank
from zotune.momentum import Momentum
from zotune.noise import Law
from zotune.optimizer import ZerothOrder


@checked
def LoZOM(
    model: nn.Module,
    lr: float = 1e-6,
    eps: float = 1e-3,
    *,
    beta: float = 0.9,
    rank: int = 2,
    interval: int = 50,
    normalize: Literal["none", "rms"] = "rms",
    law: Law = "gaussian",
    queries: int = 1,
    seed: int = 0,
    **options: Any,
) -> ZerothOrder:
    """LoZO-M on `model`; `options` are those of `ZerothOrder`. Raises ConfigError unless 0 <= beta < 1."""
    arguments = {
        "eps": eps,
        "beta": beta,
        "rank": rank,
        "interval": interval,
        "normalize": normalize,
        "law": law,
        "queries": queries,
    }
    return ZerothOrder(
        model,
        lr=lr,
        # The window before stays at hand: each tensor projects its momentum from there.
        direction=LowRank(rank, interval, law, normalize, bases=2),
        estimator=TwoSided(eps, queries),
        rule=Momentum(beta, 1 - beta, rank),
        seed=seed,
        method="lozo_m",
        arguments=arguments,
        **options,
    )
