"""Momentum as a rule: in the direction's low-rank coordinates where it has such, else one number for each weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from zotune.direction import Direction, Factors, State, Target
from zotune.errors import ConfigError
from zotune.estimate import Probe
from zotune.rule import Block, Rule, decayed

_STEP = "/step"  # in the state, behind a parameter's name


@final
class Momentum(Rule):
    """`M <- beta M + weight * sum of coef z`, then `theta <- (1 - lr * weight_decay) theta - lr M`.

    `weight` is `1 - beta` for a moving average and 1 for the heavy ball. Of a low-rank direction z = u v' of rank
    `rank` only N (rows, rank) with M = N v' is kept; when its basis changes, N becomes `N v_old' v_new / columns`,
    which for independent entries of variance 1 is about the projection of M onto the new basis. A tensor that rests
    keeps its momentum as it is.
    """

    def __init__(self, beta: float, weight: float, rank: int | None = None) -> None:
        if not 0 <= beta < 1:
            raise ConfigError(f"the momentum must be in [0, 1), got {beta}. Remedy: 0.9 is usual, 0 is none.")
        self.beta, self.weight, self.rank = beta, weight, rank
        self.by_factors = rank is not None
        self.m: dict[str, Tensor] = {}  # (rows, rank) where the direction is low rank, else flattened; wide
        self.at: dict[str, int] = {}  # the step whose basis a low-rank momentum is in

    def change(self, target: Target, direction: Direction, probes: Sequence[Probe], lr: float) -> Factors | None:
        terms = [(p.key, self.weight * p.coef * direction.gain(target, p.key)) for p in probes]
        new = direction.combined(target, terms)
        if new is None:
            return None
        old = self.m.get(target.name)
        if old is not None:
            old = old.to(new.u.device)
            last, window = self.at[target.name], direction.window()
            if last // window != probes[0].key.step // window:
                before = direction.factors(target, replace(probes[0].key, step=last))
                assert before is not None
                old = _projected(old, before.v, new.v)
            new = replace(new, u=_scaled(old, self.beta) + new.u)
        self.m[target.name], self.at[target.name] = new.u, probes[0].key.step
        return replace(new, u=_scaled(new.u, -lr))

    def update(self, block: Block, probes: Sequence[Probe], lr: float, weight_decay: float) -> Tensor:
        flat = self._flat(block)
        m = _scaled(flat[block.start : block.stop], self.beta)
        for p in probes:
            m = block.plus(m, p, self.weight * p.coef * block.direction.gain(block.target, p.key))
        flat[block.start : block.stop] = m
        value, step = decayed(block, lr, weight_decay), _scaled(m, -lr)
        # Adding zero would still turn -0.0 into 0.0.
        return torch.where(step == 0, value, value + step)

    def _flat(self, block: Block) -> Tensor:
        """The dense momentum of a block's tensor, zero before the first step."""
        name, wide = block.target.name, block.wide()
        if name not in self.m:
            self.m[name] = wide.new_zeros(block.target.data.numel())
        self.m[name] = self.m[name].to(wide.device)  # a state that was read from a file lies on the CPU
        return self.m[name]

    def state(self) -> State:
        return self.m | {name + _STEP: torch.tensor(step) for name, step in self.at.items()}

    def load_state(self, state: State) -> None:
        self.m = {name: m.clone() for name, m in state.items() if not name.endswith(_STEP)}
        self.at = {name.removesuffix(_STEP): int(step) for name, step in state.items() if name.endswith(_STEP)}

    def state_elements(self, targets: Sequence[Target]) -> int:
        if self.rank is None:
            return sum(t.data.numel() for t in targets)
        return sum(t.data.numel() if t.data.dim() < 2 else t.matrix_shape[0] * self.rank + 1 for t in targets)


def _scaled(x: Tensor, factor: float) -> Tensor:
    """`factor * x` with the factor rounded to the dtype of `x` first: the same bits on every device."""
    return torch.tensor(factor, dtype=x.dtype) * x


def _projected(n: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """`n old' new / rows of old` in float64, rounded to the dtype of `n`: (rows, rank)."""
    turn = old.to(torch.float64).T @ new.to(torch.float64) / old.shape[0]
    return (n.to(torch.float64) @ turn).to(n.dtype)
