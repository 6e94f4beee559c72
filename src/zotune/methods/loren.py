"""LOREN: directions shaped by a learned rank-one curvature (arXiv 2511.07971, AAAI 2026).

    once:   a ~ N(0, I_n) for every matrix W (m x n);   the curvature of each of its rows is rho I + a a'
    step t: s_i = u_i - (a . u_i) / (D (D + sqrt(rho))) a,   D = sqrt(rho + |a|^2),   u ~ N(0, I), row by row
            f_k = L(W + eps s^k) for k = 1..K;   f their mean
            W <- W - lr ghat,   ghat = 1 / ((K - 1) eps) sum_k (f_k - f) s^k               (leave-one-out)
            a <- a - lr_cov grad J,   grad J = -1 / ((K - 1) rho) sum_k (f_k - f) sum_i (a . s_i^k) s_i^k
            vectors: s = u

Symbols: rho -> damping, K -> queries, beta_1 -> momentum. Defaults: damping 0.1, K 6, lr_cov 1e-3, eps 1e-3.

The form of s is 1 - sqrt(rho) / D = |a|^2 / (D (D + sqrt(rho))) put into the closed form: it holds at a = 0 too, where
s = u. Cov(s_i) = rho (rho I + a a')^-1, so a coordinate that a does not touch keeps variance 1, as in MeZO. grad J is
the score-function gradient of E f(s): grad_a log p(s) = m a / D^2 - (1 / rho) sum_i (a . s_i) s_i, whose first term
leave-one-out cancels.

form="flat" is the released code's: one rank-one term for the flattened matrix, with a repeated for every row, so that
the correlation spans rows. Then a . u_i above becomes sum_i a . u_i, and |a|^2 becomes m |a|^2; the sum takes one more
pass over the noise for each direction.

Memory: a, n numbers a matrix. momentum > 0 adds one number per weight: M <- momentum M + ghat, W <- W - lr M.

Differs from the paper in: momentum is 0 by default; a scope of vectors alone, where nothing has a curvature, is
refused; we had the abstract, the code and notes on the text, not the text.
Differs from the released code in: rows, not the flattened matrix (see form); vectors are not shaped; momentum, where it
is asked for, decays once a step, not once for each of the K directions (its beta_1 is 0.9); a takes the gradient
above, where the code's is multiplied by eps^2 sqrt(rho), which leaves a where it began; the other sign of the root.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from zotune import kernels
from zotune.arguments import checked
from zotune.direction import Dense, Direction, State, Target
from zotune.errors import ConfigError
from zotune.estimate import Estimator, Point, Probe, check_queries, check_radius
from zotune.momentum import Momentum
from zotune.noise import Key, Law, Purpose
from zotune.optimizer import ZerothOrder
from zotune.rule import Sgd

Form = Literal["rows", "flat"]

_CHUNK = 1 << 20


@final
class LeaveOneOut(Estimator):
    """Each of `queries` one-sided losses against the mean of the others; as many evaluations.

    `coef_k = (f_k - f) / ((K - 1) eps)` with f the mean of all K: E f(theta + eps z) is what descends.
    """

    def __init__(self, eps: float, queries: int) -> None:
        check_radius(eps)
        check_queries(queries, 2)
        self.eps, self.queries = eps, queries

    def points(self, seed: int, step: int) -> list[Point]:
        return [Point(Key(seed, step, query), self.eps) for query in range(self.queries)]

    def probes(self, seed: int, step: int, losses: Sequence[float]) -> list[Probe]:
        share = (self.queries - 1) * self.eps
        keys = (point.key for point in self.points(seed, step))
        found = zip(keys, losses, above_mean(losses), strict=True)
        return [Probe(key, above / share, (loss,)) for key, loss, above in found]


def above_mean(losses: Sequence[float]) -> list[float]:
    """Each loss less their mean. From their differences, so that equal losses give exactly 0."""
    return [math.fsum(loss - other for other in losses) / len(losses) for loss in losses]


@final
class RankOne(Direction):
    """s = H^-1/2 u up to sqrt(damping), with H the rank-one curvature that a describes; vectors get u."""

    of_matrices = True
    by_elements = True

    def __init__(self, law: Law, damping: float, lr_cov: float, spread: float, form: Form, keep: int) -> None:
        self.damping, self.lr_cov, self.spread, self.form = damping, lr_cov, spread, form
        self.u = Dense(law)
        self.a: dict[str, Tensor] = {}  # (columns,) wide, of those matrices whose a has been learned
        self._first: dict[str, tuple[int, Tensor]] = {}  # the initial a, and the seed that it was drawn for
        self._dots: dict[tuple[Key, str], Tensor] = {}  # sum_i a . u_i of the latest keys; form "flat" alone
        self._keep = keep

    def prepare(self, targets: Sequence[Target]) -> None:
        self.u.prepare(targets)

    def block(self, target: Target, key: Key, start: int, stop: int) -> Tensor:
        if target.data.dim() < 2:
            return self.u.block(target, key, start, stop)
        columns = target.matrix_shape[1]
        first, last = start // columns, -(-stop // columns)
        u = self.u.block(target, key, first * columns, last * columns).view(-1, columns)
        return self._shaped(target, key, u).flatten()[start - first * columns : stop - first * columns]

    def rows(self, target: Target, key: Key, rows: Tensor) -> Tensor:
        u = self.u.rows(target, key, rows)
        return self._shaped(target, key, u) if target.data.dim() >= 2 else u

    def add(self, target: Target, key: Key, start: int, w: Tensor, scales: Sequence[float]) -> list[Tensor]:
        if target.data.dim() < 2:
            return self.u.add(target, key, start, w, scales)
        return super().add(target, key, start, w, scales)

    def a_of(self, target: Target, key: Key) -> Tensor:
        """The a of a matrix, (columns,) float32, or float64 for float64 weights."""
        if target.name in self.a:
            return self.a[target.name].to(target.data.device)
        seed, first = self._first.get(target.name, (-1, torch.empty(0)))
        if seed != key.seed:
            start = Key(key.seed, 0, 0, Purpose.BASIS)
            columns = target.matrix_shape[1]
            drawn = kernels.noise("gaussian", start, target.name, 0, columns, target.data.device, target.fast)
            wide = torch.float64 if target.data.dtype == torch.float64 else torch.float32
            first = torch.tensor(self.spread, dtype=wide, device=drawn.device) * drawn.to(wide)
            self._first[target.name] = (key.seed, first)
        return first

    def _shaped(self, target: Target, key: Key, u: Tensor) -> Tensor:
        """s of some whole rows, from their u (rows, columns)."""
        a = self.a_of(target, key)
        dots = _along(u, a) if self.form == "rows" else self._whole(target, key, a)
        d, root = self._d(target, a), math.sqrt(self.damping)
        return u - (dots / (d * (d + root))).to(a.dtype) * a

    def _d(self, target: Target, a: Tensor) -> Tensor:
        repeated = 1 if self.form == "rows" else target.matrix_shape[0]
        return (self.damping + repeated * a.to(torch.float64).square().sum()).sqrt()

    def _whole(self, target: Target, key: Key, a: Tensor) -> Tensor:
        """sum_i a . u_i over all rows, float64."""
        found = self._dots.get((key, target.name))
        if found is None:
            columns = target.matrix_shape[1]
            parts = [self.u.block(target, key, *at).view(-1, columns) for at in target.slices(_CHUNK)]
            found = self._dots[key, target.name] = torch.stack([_along(part, a).sum() for part in parts]).sum()
        return found

    def observe(self, targets: Sequence[Target], probes: Sequence[Probe]) -> None:
        above = above_mean([probe.losses[0] for probe in probes])
        if self.lr_cov and any(above):
            learned = {t.name: self._learned(t, probes, above) for t in targets if t.data.dim() >= 2}
            self.a.update(learned)
        self._dots.clear()

    def _learned(self, target: Target, probes: Sequence[Probe], above: Sequence[float]) -> Tensor:
        a, columns = self.a_of(target, probes[0].key), target.matrix_shape[1]
        gradient = torch.zeros(columns, dtype=torch.float64, device=a.device)
        for probe, f in zip(probes, above, strict=True):
            pull, dots = torch.zeros_like(gradient), torch.zeros_like(gradient[0])
            for start, stop in target.slices(_CHUNK):
                s = self.block(target, probe.key, start, stop).view(-1, columns)
                if self.form == "rows":
                    pull += (_along(s, a) * s.to(torch.float64)).sum(0)
                else:
                    pull, dots = pull + s.to(torch.float64).sum(0), dots + _along(s, a).sum()
            pull = pull if self.form == "rows" else dots * pull
            gradient = gradient - f / ((len(probes) - 1) * self.damping) * pull
        return (a.to(torch.float64) - self.lr_cov * gradient).to(a.dtype)

    def state(self) -> State:
        return dict(self.a)

    def load_state(self, state: State) -> None:
        self.a = {name: a.clone() for name, a in state.items()}
        self._dots.clear()

    def state_elements(self, targets: Sequence[Target]) -> int:
        own = sum(target.matrix_shape[1] for target in targets if target.data.dim() >= 2)
        return self.u.state_elements(targets) + own + (self._keep * len(targets) if self.form == "flat" else 0)


def _along(x: Tensor, a: Tensor) -> Tensor:
    """`x . a` row by row, (rows, 1) float64: rounded later, so that how rows were grouped does not show."""
    return (x.to(torch.float64) * a.to(torch.float64)).sum(1, keepdim=True)


@checked
def LOREN(
    model: nn.Module,
    lr: float = 1e-6,
    eps: float = 1e-3,
    *,
    damping: float = 0.1,
    lr_cov: float = 1e-3,
    spread: float = 1.0,
    momentum: float = 0.0,
    form: Form = "rows",
    law: Law = "gaussian",
    queries: int = 6,
    seed: int = 0,
    **options: Any,
) -> ZerothOrder:
    """LOREN on `model`; `options` are those of `ZerothOrder`; `spread` is the standard deviation of the initial a.

    Raises ConfigError unless damping > 0, lr_cov and spread >= 0, 0 <= momentum < 1 and queries >= 2.
    """
    if not 0 < damping < math.inf:
        raise ConfigError(f"damping must be a positive number, got {damping}. Remedy: 0.1 is LOREN's.")
    for name, value in (("lr_cov", lr_cov), ("spread", spread)):
        if not 0 <= value < math.inf:
            raise ConfigError(f"{name} must be a number >= 0, got {value}. Remedy: leave it out for the default.")
    return ZerothOrder(
        model,
        lr=lr,
        direction=RankOne(law, damping, lr_cov, spread, form, keep=max(4, queries)),
        estimator=LeaveOneOut(eps, queries),
        rule=Momentum(momentum, 1.0) if momentum else Sgd(),
        seed=seed,
        method="loren",
        arguments={
            "eps": eps,
            "damping": damping,
            "lr_cov": lr_cov,
            "spread": spread,
            "momentum": momentum,
            "form": form,
            "law": law,
            "queries": queries,
        },
        **options,
    )
