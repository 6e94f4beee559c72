"""ConMeZO: directions in a cone around the momentum (arXiv 2511.02757, AISTATS 2026).

    once:   m = 0
    step t: z = sqrt(d) cos(phi) m / |m| + sin(phi) u,   u ~ N(0, I_d)             (z = u while m = 0)
            c = [L(theta + eps z) - L(theta - eps z)] / (2 eps)
            theta <- theta - lr c z;    m <- beta m + (1 - beta) c z

Symbols: theta (the cone's) -> angle, phi here; d, the weights in scope; |m|, the norm over all of them. E |z|^2 = d, so
eps and lr are MeZO's. Angle pi / 2 is MeZO. Defaults: angle 1.35, beta 0.95.

With `warmup` > 0 the angle goes from pi / 2 to `angle` in that many steps, linearly: the momentum must mean something
before the cone closes around it.

Memory: m, one number per weight.

Differs from the paper in: the warm-up is one of the forms in the authors' synthetic experiment; `queries` averages over
several z in one cone.
Differs from the released code in: m begins at zero, not as noise; |m| is computed, where there it is the square root of
an expectation; beta is constant, where there it is 0.1 for 200 steps and reaches its value after 2,000; m is kept in
float32 beside 16-bit weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from zotune.arguments import checked
from zotune.direction import Dense, Direction, State, Target
from zotune.errors import ConfigError
from zotune.estimate import Probe, TwoSided
from zotune.noise import Key, Law
from zotune.optimizer import ZerothOrder
from zotune.rule import Sgd

_TINY = 1e-8  # a momentum shorter than this points nowhere
_CHUNK = 1 << 20
_NORM = "/norm"  # in the state, a name that no parameter has


@final
class Cone(Direction):
    """`along * m + across * u`: a Gaussian turned towards the momentum m."""

    by_elements = True

    def __init__(self, law: Law, angle: float, beta: float, warmup: int) -> None:
        self.angle, self.beta, self.warmup = angle, beta, warmup
        self.u = Dense(law)
        self.size = 0  # d
        self.m: dict[str, Tensor] = {}  # (numel,) wide
        self.norm = 0.0

    def prepare(self, targets: Sequence[Target]) -> None:
        self.u.prepare(targets)
        self.size = sum(target.data.numel() for target in targets)

    def angle_at(self, step: int) -> float:
        """The cone's angle in a step, in radians."""
        left = max(0.0, 1 - step / self.warmup) if self.warmup else 0.0
        return self.angle + (math.pi / 2 - self.angle) * left

    def block(self, target: Target, key: Key, start: int, stop: int) -> Tensor:
        return self._turned(target, key, self.u.block(target, key, start, stop), slice(start, stop))

    def rows(self, target: Target, key: Key, rows: Tensor) -> Tensor:
        return self._turned(target, key, self.u.rows(target, key, rows), rows)

    def _turned(self, target: Target, key: Key, u: Tensor, at: slice | Tensor) -> Tensor:
        """z from u: of a slice of the flattened tensor, or of some rows."""
        if self.norm <= _TINY:
            return u
        angle = self.angle_at(key.step)
        m = self._momentum(target)
        part = m[at] if isinstance(at, slice) else m.view(target.matrix_shape)[at]
        along = torch.tensor(math.cos(angle) * math.sqrt(self.size) / self.norm, dtype=m.dtype)
        across = torch.tensor(math.sin(angle), dtype=m.dtype)
        return along * part + across * u.to(m.dtype)

    def observe(self, targets: Sequence[Target], probes: Sequence[Probe]) -> None:
        for target in targets:
            m = self.m[target.name] = self._momentum(target)
            for start, stop in target.slices(_CHUNK):
                new = self.beta * m[start:stop]
                for probe in probes:
                    z = self.block(target, probe.key, start, stop).to(m.dtype)
                    new = new + (1 - self.beta) * probe.coef * z
                m[start:stop] = new
        # Of all tensors, also those that rested in this step.
        parts = [part for m in self.m.values() for part in torch.split(m, _CHUNK)]
        self.norm = math.sqrt(math.fsum(float(part.to(torch.float64).square().sum()) for part in parts))

    def _momentum(self, target: Target) -> Tensor:
        """m of a tensor, (numel,) wide, on its device; zero for one that has not moved yet."""
        if target.name not in self.m:
            dtype = torch.float64 if target.data.dtype == torch.float64 else torch.float32
            return torch.zeros(target.data.numel(), dtype=dtype, device=target.data.device)
        return self.m[target.name].to(target.data.device)

    def state(self) -> State:
        return {**self.m, _NORM: torch.tensor(self.norm, dtype=torch.float64)} if self.m else {}

    def load_state(self, state: State) -> None:
        self.m = {name: m.clone() for name, m in state.items() if name != _NORM}
        self.norm = float(state[_NORM]) if _NORM in state else 0.0

    def state_elements(self, targets: Sequence[Target]) -> int:
        return self.u.state_elements(targets) + self.size + 1


@checked
def ConMeZO(
    model: nn.Module,
    lr: float = 1e-6,
    eps: float = 1e-3,
    *,
    angle: float = 1.35,
    beta: float = 0.95,
    warmup: int = 0,
    law: Law = "gaussian",
    queries: int = 1,
    seed: int = 0,
    **options: Any,
) -> ZerothOrder:
    """ConMeZO on `model`; `options` are those of `ZerothOrder`.

    Raises ConfigError unless 0 <= angle <= pi / 2 (radians), 0 <= beta < 1 and warmup >= 0 (steps).
    """
    if not 0 <= angle <= math.pi / 2:
        raise ConfigError(f"angle must be between 0 and pi / 2, got {angle}. Remedy: 1.35 is ConMeZO's.")
    if not 0 <= beta < 1:
        raise ConfigError(f"beta must be in [0, 1), got {beta}. Remedy: 0.95 is ConMeZO's.")
    if warmup < 0:
        raise ConfigError(f"warmup must be at least 0 steps, got {warmup}. Remedy: 0 is no warm-up.")
    return ZerothOrder(
        model,
        lr=lr,
        direction=Cone(law, angle, beta, warmup),
        estimator=TwoSided(eps, queries),
        rule=Sgd(),
        seed=seed,
        method="conmezo",
        arguments={
            "eps": eps,
            "angle": angle,
            "beta": beta,
            "warmup": warmup,
            "law": law,
            "queries": queries,
        },
        **options,
    )
