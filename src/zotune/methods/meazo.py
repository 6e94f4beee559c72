"""MEAZO: On Adaptivity in Zeroth-Order Optimization (arXiv 2605.03869, 2026).

    v = 0
    for step t = 1, 2, ...:
        for query j = 1..q:   u_j ~ N(0, I);   d_j = [f(theta + eps u_j) - f(theta - eps u_j)] / (2 eps)
        g = (1/q) sum_j d_j
        v <- beta v + (1 - beta) g^2;   v_hat = v / (1 - beta^t)
        theta <- theta - eta / (sqrt(v_hat) + zeta) (1/q) sum_j d_j u_j

One number is the whole state: in high dimensions a zeroth-order gradient has the same size in every coordinate, so
Adam's second moment says no more than this. With groups = G the scope is cut into G runs of consecutive tensors; each
has queries of its own, which perturb it alone, and a v of its own (2 q G forwards).

Symbols: q -> queries, eps -> eps, eta -> lr, beta -> beta, zeta -> zeta. The step is about lr long in every coordinate,
whatever the loss's unit. Defaults: beta 0.99, zeta 1e-8, lr 1e-5 are ours, eps 1e-3 is MeZO's; the paper's were not
available to us.

Differs from the paper in: its text was not available to us, and the summaries of it at hand print the exponent t - 1,
which divides by zero in the first step; what a group is was not in them. Weight decay is decoupled and not divided.
Differs from the released code in: no code is known to us.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor, nn

from zotune.arguments import checked
from zotune.direction import Dense, Direction, Factors, State, Target
from zotune.errors import ConfigError
from zotune.estimate import Probe, TwoSided
from zotune.noise import Key, Law
from zotune.optimizer import ZerothOrder
from zotune.rule import Block, Rule, Sgd


@final
class ScalarNormalised(Rule):
    """SGD whose step is divided by the root of a running mean of the squared slope, one for each group of queries."""

    in_parts = True

    def __init__(self, beta: float, zeta: float, groups: int) -> None:
        self.beta, self.zeta, self.groups = beta, zeta, groups
        self._sgd = Sgd()
        self._v, self._steps = [0.0] * groups, 0
        self._over = [0.0] * groups  # what this step's coefficients are multiplied with

    def begin(self, probes: Sequence[Probe]) -> None:
        self._steps += 1
        for group in range(self.groups):
            # The estimator averages over all queries, of which this group has its share only.
            slope = self.groups * sum(probe.coef for probe in probes if probe.key.query % self.groups == group)
            self._v[group] = self.beta * self._v[group] + (1 - self.beta) * slope**2
            mean = self._v[group] / (1 - self.beta**self._steps)
            self._over[group] = 1 / (mean**0.5 + self.zeta)

    def change(self, target: Target, direction: Direction, probes: Sequence[Probe], lr: float) -> Factors | None:
        return self._sgd.change(target, direction, self._normalised(probes), lr)

    def update(self, block: Block, probes: Sequence[Probe], lr: float, weight_decay: float) -> Tensor:
        return self._sgd.update(block, self._normalised(probes), lr, weight_decay)

    def _normalised(self, probes: Sequence[Probe]) -> list[Probe]:
        return [replace(p, coef=p.coef * self._over[p.key.query % self.groups]) for p in probes]

    def state(self) -> State:
        return {"v": torch.tensor(self._v, dtype=torch.float64), "steps": torch.tensor(self._steps)}

    def load_state(self, state: State) -> None:
        self._v, self._steps = state["v"].tolist(), int(state["steps"])

    def state_elements(self, targets: Sequence[Target]) -> int:
        return self.groups + 1


@final
class Grouped(Direction):
    """Dense z on one group of tensors at a time: query j moves group `j % groups`, and the update makes up for it."""

    in_parts = True

    def __init__(self, law: Law, groups: int) -> None:
        self.groups = groups
        self._z = Dense(law)
        self._group: dict[str, int] = {}

    def prepare(self, targets: Sequence[Target]) -> None:
        if self.groups > len(targets):
            raise ConfigError(f"groups is {self.groups}, the scope has {len(targets)} tensors. Remedy: fewer groups.")
        self._z.prepare(targets)
        self._group = {target.name: i * self.groups // len(targets) for i, target in enumerate(targets)}

    def active(self, target: Target, key: Key) -> bool:
        return self._group[target.name] == key.query % self.groups

    def gain(self, target: Target, key: Key) -> float:
        return float(self.groups)

    def block(self, target: Target, key: Key, start: int, stop: int) -> Tensor:
        z = self._z.block(target, key, start, stop)
        return z if self.active(target, key) else torch.zeros_like(z)

    def rows(self, target: Target, key: Key, rows: Tensor) -> Tensor:
        z = self._z.rows(target, key, rows)
        return z if self.active(target, key) else torch.zeros_like(z)

    def add(self, target: Target, key: Key, start: int, w: Tensor, scales: Sequence[float]) -> list[Tensor]:
        return self._z.add(target, key, start, w, scales) if self.active(target, key) else [w] * len(scales)

    def state_elements(self, targets: Sequence[Target]) -> int:
        return self._z.state_elements(targets)


@checked
def MEAZO(
    model: nn.Module,
    lr: float = 1e-5,
    eps: float = 1e-3,
    *,
    beta: float = 0.99,
    zeta: float = 1e-8,
    groups: int = 1,
    law: Law = "gaussian",
    queries: int = 1,
    seed: int = 0,
    **options: Any,
) -> ZerothOrder:
    """MEAZO on `model`; `options` are those of `ZerothOrder`.

    Raises ConfigError unless 0 <= beta < 1, zeta > 0 and groups is at least 1 and at most the number of tensors, and
    for several groups with `blocks`.
    """
    if not 0 <= beta < 1:
        raise ConfigError(f"beta must be in [0, 1), got {beta}. Remedy: 0.99 remembers about a hundred steps.")
    if not 0 < zeta < float("inf"):
        raise ConfigError(f"zeta must be a positive number, got {zeta}. Remedy: 1e-8.")
    if groups < 1:
        raise ConfigError(f"groups must be at least 1, got {groups}. Remedy: 1 normalises the run as a whole.")
    if groups > 1 and options.get("blocks") is not None:
        # A group that rests would have the slope 0, and its v would shrink for it.
        raise ConfigError(
            f"groups is {groups}, and blocks cuts the scope into parts too. Remedy: groups 1, or no blocks."
        )
    return ZerothOrder(
        model,
        lr=lr,
        direction=Grouped(law, groups),
        estimator=TwoSided(eps, queries * groups),
        rule=ScalarNormalised(beta, zeta, groups),
        seed=seed,
        method="meazo",
        arguments={"eps": eps, "beta": beta, "zeta": zeta, "groups": groups, "law": law, "queries": queries},
        **options,
    )
