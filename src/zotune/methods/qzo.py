"""QZO: quantised zeroth-order optimisation, of the scales of a packed model (arXiv 2505.13430, ICLR 2026).

    W = Delta * W_bar with packed integer codes W_bar, which stay;   z ~ N(0, I) for every scale
    d  = [L(Delta + eps z) - L(Delta - eps z)] / (2 eps)
    d' = clip(d, -C, C)
    Delta <- max(Delta - lr d' z, 0)

Symbols: C -> clip, Delta: `--scope scales` (`zotune.quantised.scales`). Defaults are the paper's: lr 1e-7, eps 1e-3,
C 100 (50 to 200 were alike). eps and lr are in the units of the scales, which differ between formats: one of 8 bits is
about an eighteenth of one of 4 bits over the same weights, and wants that much less of eps. The clip keeps a step's
length below lr C |z|: with few bits a slope can be off by orders of magnitude.

Differs from the paper in: `queries` directions are averaged, each slope clipped before; parameters that are no scales
(another scope) move too, not kept from going below zero, which is said; `law="rademacher"` is offered.
Differs from the released code in: not compared, only its README was available to us.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any, final

from torch import Tensor, nn

from zotune.arguments import checked
from zotune.direction import Dense
from zotune.errors import ConfigError
from zotune.estimate import Estimator, Point, Probe, TwoSided
from zotune.noise import Law
from zotune.optimizer import ZerothOrder
from zotune.quantised.scales import PARAMETER
from zotune.rule import Block, Rule, Sgd

logger = logging.getLogger(__name__)


@final
class ClippedSlope(Estimator):
    """`TwoSided` with every direction's slope held within -clip and clip."""

    def __init__(self, eps: float, queries: int, clip: float) -> None:
        if not 0 < clip < math.inf:
            raise ConfigError(f"clip must be a positive number, got {clip}. Remedy: 100 is the paper's.")
        self._slope, self.eps, self.clip = TwoSided(eps, queries), eps, clip

    def points(self, seed: int, step: int) -> list[Point]:
        return self._slope.points(seed, step)

    def probes(self, seed: int, step: int, losses: Sequence[float]) -> list[Probe]:
        most = self.clip / self._slope.queries
        found = self._slope.probes(seed, step, losses)
        return [Probe(p.key, max(-most, min(most, p.coef)), p.losses) for p in found]

    def halve(self) -> None:
        super().halve()
        self._slope.halve()


@final
class NotBelowZero(Rule):
    """`Sgd`, after which no scale is below zero."""

    def __init__(self) -> None:
        self._sgd = Sgd()

    def update(self, block: Block, probes: Sequence[Probe], lr: float, weight_decay: float) -> Tensor:
        value = self._sgd.update(block, probes, lr, weight_decay)
        return value.clamp(min=0) if block.target.name.rpartition(".")[2] == PARAMETER else value


@checked
def QZO(
    model: nn.Module,
    lr: float = 1e-7,
    eps: float = 1e-3,
    *,
    clip: float = 100.0,
    law: Law = "gaussian",
    queries: int = 1,
    seed: int = 0,
    **options: Any,
) -> ZerothOrder:
    """QZO on `model`, whose scope should be "scales"; `options` are those of `ZerothOrder`.

    A scope that holds others is said on the logger. Raises ConfigError unless `clip` is a positive number.
    """
    optimizer = ZerothOrder(
        model,
        lr=lr,
        direction=Dense(law),
        estimator=ClippedSlope(eps, queries, clip),
        rule=NotBelowZero(),
        seed=seed,
        method="qzo",
        arguments={"eps": eps, "clip": clip, "law": law, "queries": queries},
        **options,
    )
    others = [name for name in optimizer.names if name.rpartition(".")[2] != PARAMETER]
    if others:
        logger.warning(
            "qzo trains the scales of packed layers, and %d of %d parameters in scope are none, such as %s: these move "
            "as with mezo, their slope clipped. Remedy: --quantize and --scope scales.",
            len(others), len(optimizer.names), others[0],
        )  # fmt: skip
    return optimizer
