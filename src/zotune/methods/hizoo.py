"""HiZOO: second-order fine-tuning with a diagonal curvature from three points (arXiv 2402.15173, ICLR 2025).

    once:   H = 1 for every weight
    step t: z_hat = z / sqrt(H),   z ~ N(0, I)
            l+, l-, l0 = L(theta + eps z_hat), L(theta - eps z_hat), L(theta);   c = (l+ - l-) / (2 eps)
            theta <- theta - lr c z_hat
            H <- (1 - alpha) H + alpha |l+ + l- - 2 l0| / (2 eps^2) H z^2

Symbols: Sigma = 1 / H, mu -> eps, alpha -> smoothing. Defaults from the paper: smoothing 1e-8, lr 1e-6, eps 1e-3. On a
quadratic with Hessian A the increment of H_i has the mean alpha H_i (tr(B) / 2 + B_ii), B = H^-1/2 A H^-1/2.

Memory: H is one number per weight (curvature="dense", the paper's). "factored" keeps the means of its rows and of its
columns, H = R C' / mean(R), and "tensor" one number per tensor: both learn from the means of the same increment.

With smoothing 0 nothing is learned or kept: MeZO, with an evaluation of the centre that changes nothing.

Differs from the paper in: H is learned after the update, not before, so that the step goes along what was probed; H is
kept at or above 1e-8; `queries` averages the coefficients and the increments of several z; "factored" and "tensor".
Differs from the released code in: no fourth evaluation to report a loss; smoothing is constant (there it is 0 unless
asked for, so that H stays 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from zotune.arguments import checked
from zotune.direction import Dense, Direction, State, Target
from zotune.errors import ConfigError
from zotune.estimate import Estimator, Point, Probe, check_queries, check_radius
from zotune.noise import Key, Law
from zotune.optimizer import ZerothOrder
from zotune.rule import Sgd

Curvature = Literal["dense", "factored", "tensor"]

_FLOOR = 1e-8  # of H: it divides
_CHUNK = 1 << 20


@final
class ThreePoint(Estimator):
    """Central differences, and the centre for their curvature; 2 n + 1 evaluations, the centre last.

    A probe's losses are those of its two sides and of the centre.
    """

    def __init__(self, eps: float, queries: int = 1) -> None:
        check_radius(eps)
        check_queries(queries)
        self.eps, self.queries = eps, queries

    def points(self, seed: int, step: int) -> list[Point]:
        keys = [Key(seed, step, query) for query in range(self.queries)]
        return [*(Point(key, side) for key in keys for side in (self.eps, -self.eps)), Point(keys[0], 0.0)]

    def probes(self, seed: int, step: int, losses: Sequence[float]) -> list[Probe]:
        found = []
        for query in range(self.queries):
            plus, minus = losses[2 * query], losses[2 * query + 1]
            coef = (plus - minus) / (2 * self.eps * self.queries)
            found.append(Probe(Key(seed, step, query), coef, (plus, minus, losses[-1])))
        return found


@final
class Curved(Direction):
    """z / sqrt(H), with the H that the steps before have learned."""

    by_elements = True

    def __init__(self, law: Law, plan: ThreePoint, smoothing: float, curvature: Curvature) -> None:
        # The radius is that of the plan, which may be halved on the way.
        self.plan, self.smoothing, self.curvature = plan, smoothing, curvature
        self.z = Dense(law)
        # What is kept of H (rows, columns): itself, its means (rows, 1) and (1, columns), or its mean (1, 1); wide.
        self.h: dict[str, tuple[Tensor, ...]] = {}

    def prepare(self, targets: Sequence[Target]) -> None:
        self.z.prepare(targets)

    def block(self, target: Target, key: Key, start: int, stop: int) -> Tensor:
        z = self.z.block(target, key, start, stop)
        if target.name not in self.h:
            return z
        columns = target.matrix_shape[1]
        first, last = start // columns, -(-stop // columns)
        h = self._of(target, slice(first, last)).expand(last - first, columns).reshape(-1)
        return z / h[start - first * columns : stop - first * columns].sqrt()

    def rows(self, target: Target, key: Key, rows: Tensor) -> Tensor:
        z = self.z.rows(target, key, rows)
        return z / self._of(target, rows).sqrt() if target.name in self.h else z

    def add(self, target: Target, key: Key, start: int, w: Tensor, scales: Sequence[float]) -> list[Tensor]:
        if target.name in self.h:
            return super().add(target, key, start, w, scales)
        return self.z.add(target, key, start, w, scales)

    def observe(self, targets: Sequence[Target], probes: Sequence[Probe]) -> None:
        if not self.smoothing:
            return
        bends = []
        for probe in probes:
            plus, minus, centre = probe.losses
            bends.append(abs(plus + minus - 2 * centre) / (2 * self.plan.eps**2 * len(probes)))
        for target in targets:
            self._learn(target, probes, bends)

    def _of(self, target: Target, rows: slice | Tensor) -> Tensor:
        """H of some rows, (rows, columns) or what stands for it by broadcasting."""
        kept = tuple(part.to(target.data.device) for part in self.h[target.name])
        if self.curvature == "factored":
            r, c = kept
            return r[rows] * c / r.to(torch.float64).mean().to(r.dtype)
        return kept[0][rows] if self.curvature == "dense" else kept[0]

    def _learn(self, target: Target, probes: Sequence[Probe], bends: Sequence[float]) -> None:
        rows, columns = target.matrix_shape
        double = {"dtype": torch.float64, "device": target.data.device}
        along_rows, along_columns = torch.zeros(rows, 1, **double), torch.zeros(1, columns, **double)  # type: ignore[call-overload]
        kept = self.h.get(target.name) or self._ones(target)
        # A state that was read from a file lies on the CPU.
        self.h[target.name] = tuple(part.to(target.data.device) for part in kept)
        for start, stop in target.slices(_CHUNK):
            at = slice(start // columns, stop // columns)
            h = self._of(target, at)
            squares = torch.zeros(stop - start, dtype=h.dtype, device=h.device)
            for probe, bend in zip(probes, bends, strict=True):
                squares = squares + bend * self.z.block(target, probe.key, start, stop).to(h.dtype).square()
            grown = h * squares.view(-1, columns)
            if self.curvature == "dense":
                h.copy_(self._mixed(h, grown))
            else:
                wide = grown.to(torch.float64)
                along_rows[at] = wide.sum(1, keepdim=True)
                along_columns += wide.sum(0, keepdim=True)
        if self.curvature == "factored":
            r, c = self.h[target.name]
            self.h[target.name] = self._mixed(r, along_rows / columns), self._mixed(c, along_columns / rows)
        elif self.curvature == "tensor":
            mean = along_rows.sum().view(1, 1) / target.data.numel()
            self.h[target.name] = (self._mixed(self.h[target.name][0], mean),)

    def _mixed(self, h: Tensor, grown: Tensor) -> Tensor:
        return ((1 - self.smoothing) * h + self.smoothing * grown.to(h)).clamp(min=_FLOOR)

    def _ones(self, target: Target) -> tuple[Tensor, ...]:
        dtype = torch.float64 if target.data.dtype == torch.float64 else torch.float32
        rows, columns = target.matrix_shape
        shapes = {"dense": [(rows, columns)], "factored": [(rows, 1), (1, columns)], "tensor": [(1, 1)]}
        return tuple(torch.ones(shape, dtype=dtype, device=target.data.device) for shape in shapes[self.curvature])

    def state(self) -> State:
        return {f"{name}/{i}": part for name, kept in self.h.items() for i, part in enumerate(kept)}

    def load_state(self, state: State) -> None:
        self.h = {}
        for name, part in sorted(state.items()):
            name = name.rpartition("/")[0]
            self.h[name] = (*self.h.get(name, ()), part.clone())

    def state_elements(self, targets: Sequence[Target]) -> int:
        kept = sum(part.numel() for target in targets for part in self._ones(target)) if self.smoothing else 0
        return self.z.state_elements(targets) + kept


@checked
def HiZOO(
    model: nn.Module,
    lr: float = 1e-6,
    eps: float = 1e-3,
    *,
    smoothing: float = 1e-8,
    curvature: Curvature = "dense",
    law: Law = "gaussian",
    queries: int = 1,
    seed: int = 0,
    **options: Any,
) -> ZerothOrder:
    """HiZOO on `model`; `options` are those of `ZerothOrder`. Raises ConfigError unless 0 <= smoothing < 1."""
    if not 0 <= smoothing < 1:
        raise ConfigError(f"smoothing must be in [0, 1), got {smoothing}. Remedy: 1e-8 is HiZOO's, 0 is MeZO.")
    plan = ThreePoint(eps, queries)
    return ZerothOrder(
        model,
        lr=lr,
        direction=Curved(law, plan, smoothing, curvature),
        estimator=plan,
        rule=Sgd(),
        seed=seed,
        method="hizoo",
        arguments={
            "eps": eps,
            "smoothing": smoothing,
            "curvature": curvature,
            "law": law,
            "queries": queries,
        },
        **options,
    )
