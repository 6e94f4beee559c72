"""Update rules: fold the probes into a parameter, one block of one tensor at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from zotune.direction import Direction, Target
from zotune.estimate import Probe


@final
@dataclass(frozen=True)
class Block:
    """The elements from `start` of one flattened parameter, and what a rule may ask about them."""

    direction: Direction
    target: Target
    start: int
    weight: Tensor  # (n,) the block's current weights, in their own dtype

    def wide(self) -> Tensor:
        """The weights as (n,) float32, or float64 for float64 weights. May share memory with them: do not write."""
        return self.weight if self.weight.dtype == torch.float64 else self.weight.to(torch.float32)

    def plus(self, value: Tensor, probe: Probe, scale: float) -> Tensor:
        """`value + scale * z` along the probe's direction, (n,) in `value.dtype`."""
        return self.direction.add(self.target, probe.key, self.start, value, [scale])[0]


class Rule(ABC):
    """What is done with the estimate."""

    @abstractmethod
    def update(self, block: Block, probes: Sequence[Probe], lr: float, weight_decay: float) -> Tensor:
        """The block's new weights, (n,) float32 or float64; the store rounds them."""


@final
class Sgd(Rule):
    """`theta <- (1 - lr * weight_decay) theta - lr * sum_q coef_q z_q`: arXiv 2305.17333, def. 2, decoupled decay."""

    def update(self, block: Block, probes: Sequence[Probe], lr: float, weight_decay: float) -> Tensor:
        value = block.wide()
        if lr * weight_decay:
            value = value * (1 - lr * weight_decay)
        for probe in probes:
            # Adding zero times z would still turn -0.0 into 0.0: a step of length zero must not change a bit.
            if lr * probe.coef:
                value = block.plus(value, probe, -lr * probe.coef)
        return value
