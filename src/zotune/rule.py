"""Update rules: fold the probes into a parameter, one block of one tensor at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from zotune import kernels
from zotune.direction import Direction, Factors, State, Target
from zotune.estimate import Probe
from zotune.noise import Key


@final
@dataclass(frozen=True)
class Block:
    """The elements from `start` of one flattened parameter, and what a rule may ask about them."""

    direction: Direction
    target: Target
    start: int
    weight: Tensor  # (n,) the block's current weights, in their own dtype

    @property
    def stop(self) -> int:
        """The element behind the last."""
        return self.start + self.weight.numel()

    def wide(self) -> Tensor:
        """The weights as (n,) float32, or float64 for float64 weights. May share memory with them: do not write."""
        return self.weight if self.weight.dtype == torch.float64 else self.weight.to(torch.float32)

    def plus(self, value: Tensor, probe: Probe, scale: float) -> Tensor:
        """`value + scale * z` along the probe's direction, (n,) in `value.dtype`."""
        return self.plus_sum(value, [(probe, scale)])

    def plus_sum(self, value: Tensor, terms: Sequence[tuple[Probe, float]]) -> Tensor:
        """`value + sum of scale * z` over terms (probe, scale), (n,) in `value.dtype`."""
        moved = [(probe.key, scale) for probe, scale in terms if self.direction.active(self.target, probe.key)]
        return self.direction.add_sum(self.target, moved, self.start, value) if moved else value


class Rule(ABC):
    """What is done with the estimate. `change` or `update` is asked once per tensor and step, in a fixed order."""

    by_factors = False
    """Whether `change` makes whole matrices of the direction's own factors: none can then move in part."""

    may_wait = False
    """Whether `update` can be asked after later steps were evaluated: it depends on its arguments alone."""

    in_parts = False
    """Whether it keeps nothing of a tensor's elements, and asks for a block's alone: so for sharded models, and for
    small tensors that are moved as one.
    """

    def begin(self, probes: Sequence[Probe]) -> None:  # noqa: B027 - most rules have no memory
        """Called once per step, before the first tensor: the place to advance what is shared by all tensors."""

    def change(self, target: Target, direction: Direction, probes: Sequence[Probe], lr: float) -> Factors | None:
        """The step's change of a tensor as one low-rank matrix, if it has that form; else None, and `update` runs."""
        return None

    def changes(
        self, targets: Sequence[Target], direction: Direction, probes: Sequence[Probe], lrs: Sequence[float]
    ) -> list[Factors | None]:
        """`change` of several tensors, in their order."""
        return [self.change(target, direction, probes, lr) for target, lr in zip(targets, lrs, strict=True)]

    def along(
        self, target: Target, direction: Direction, probes: Sequence[Probe], lr: float, weight_decay: float
    ) -> tuple[Key, float] | None:
        """(key, scale) where `update` is `theta + scale * z(key)` and nothing else; else None."""
        return None

    @abstractmethod
    def update(self, block: Block, probes: Sequence[Probe], lr: float, weight_decay: float) -> Tensor:
        """The block's new weights, (n,) float32 or float64; the store rounds them."""

    def state(self) -> State:
        """What is carried from step to step."""
        return {}

    def load_state(self, state: State) -> None:  # noqa: B027 - most rules have no memory
        """Take back what `state` returned."""

    def state_elements(self, targets: Sequence[Target]) -> int:
        """How many numbers the rule keeps beyond the weights: the declared memory."""
        return 0


@final
class Sgd(Rule):
    """`theta <- (1 - lr * weight_decay) theta - lr * sum_q coef_q z_q`: arXiv 2305.17333, def. 2, decoupled decay."""

    may_wait = True
    in_parts = True

    def change(self, target: Target, direction: Direction, probes: Sequence[Probe], lr: float) -> Factors | None:
        return direction.combined(target, _terms(target, direction, probes, lr))

    def changes(
        self, targets: Sequence[Target], direction: Direction, probes: Sequence[Probe], lrs: Sequence[float]
    ) -> list[Factors | None]:
        terms = [_terms(target, direction, probes, lr) for target, lr in zip(targets, lrs, strict=True)]
        return direction.combined_all(targets, terms)

    def along(
        self, target: Target, direction: Direction, probes: Sequence[Probe], lr: float, weight_decay: float
    ) -> tuple[Key, float] | None:
        moving = [p for p in probes if lr * p.coef and direction.active(target, p.key)]
        if lr * weight_decay or len(moving) != 1:
            return None
        return moving[0].key, -lr * moving[0].coef * direction.gain(target, moving[0].key)

    def update(self, block: Block, probes: Sequence[Probe], lr: float, weight_decay: float) -> Tensor:
        # Adding zero times z would still turn -0.0 into 0.0: a step of length zero must not change a bit.
        gain = block.direction.gain
        terms = [(p, -lr * p.coef * gain(block.target, p.key)) for p in probes if lr * p.coef]
        return block.plus_sum(decayed(block, lr, weight_decay), terms)


def _terms(target: Target, direction: Direction, probes: Sequence[Probe], lr: float) -> list[tuple[Key, float]]:
    return [(p.key, -lr * p.coef * direction.gain(target, p.key)) for p in probes]


def decayed(block: Block, lr: float, weight_decay: float) -> Tensor:
    """`(1 - lr * weight_decay) theta` of the block, wide; may share memory with the weights."""
    return block.wide() * (1 - lr * weight_decay) if lr * weight_decay else block.wide()


def decayed_sum(block: Block, lr: float, weight_decay: float) -> Tensor:
    """`(1 - lr * weight_decay) theta` plus the low-rank update that the block's target carries as pending, wide."""
    value, p = decayed(block, lr, weight_decay), block.target.pending
    if p is None:
        return value
    columns = block.target.matrix_shape[1]
    u = p.u[block.start // columns : block.stop // columns]
    return kernels.add_low_rank(value.view(-1, columns), u, p.v, p.scale, [1.0], block.target.fast)[0].flatten()
