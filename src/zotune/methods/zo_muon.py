"""ZO-Muon: matrix-sign steps from a random subspace (arXiv 2602.17155).

    for step t:
        if t mod nu = 0:  P = orthonormal columns, m x r, for every matrix W (m x n)
        Psi_i ~ N(0, 1)^{r x n} for i = 1..q;   Z_i = P Psi_i
        G = 1/q sum_i [L(W + eps Z_i) - L(W)] / eps  Psi_i
        W <- W - lr P NS(G)              vectors: W <- W - vector_lr 1/q sum_i [...] z_i

    NS(G): X = G / (|G|_F + 1e-7), five times X <- a X + b (X X') X + c (X X')^2 X, about the orthogonal factor of G;
    a, b, c = 3.4445, -4.7750, 2.0315. Of a G with more rows than columns the transpose is taken.

Symbols: r -> rank, nu -> interval, q -> queries. Defaults from the paper's code: rank 64, interval 100, 4 queries, lr
1e-2, eps 1e-3, vector_lr 1e-7. The rank of a matrix is at most its number of rows. lr is the size of every singular
value's step, whatever the loss: weights of another scale want another lr.

Memory: P, rank * rows for each matrix, and Psi of small matrices; Psi of large ones is drawn again where it is used.
NS runs in float64 and is rounded; on another machine or with other threads its last bits may still differ.

Differs from the paper in: a scope of vectors alone, in which lr would move nothing, is refused. Nothing else is known
to us; we had its code and notes on it.
Differs from the released code in: P is a pure function of the window, so the step that refreshes it uses one P for all
its queries (there each query draws its own and the update takes the last); NS does not run in 16 bits; vectors rest
where lr is 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from zotune import kernels
from zotune.arguments import checked
from zotune.direction import Dense, Direction, Factors, Target, Together
from zotune.errors import ConfigError
from zotune.estimate import OneSided, Probe
from zotune.factored import Factored
from zotune.noise import Key
from zotune.optimizer import ZerothOrder
from zotune.rule import Block, Rule, Sgd
from zotune.subspace import Bases

_SMALL = 1 << 14  # elements of a Psi up to which all are drawn together and kept for the step


@final
class LeftBasis(Factored):
    """`Z = P Psi`: P kept for `interval` steps, Psi fresh for every probe; vectors get a dense z."""

    of_matrices = True
    in_parts = True

    def __init__(self, rank: int, interval: int) -> None:
        self.rank = rank
        self._bases, self._together, self._dense = Bases(interval), Together("gaussian"), Dense("gaussian")
        self._small: set[str] = set()

    def prepare(self, targets: Sequence[Target]) -> None:
        self._dense.prepare([target for target in targets if target.data.dim() < 2])
        for target in targets:
            count = self.rank_of(target) * target.matrix_shape[1]
            if target.data.dim() >= 2 and count <= _SMALL:
                self._small.add(target.name)
                self._together.add(target.name, count, target.data.device)

    def rank_of(self, target: Target) -> int:
        """The rank, at most the number of rows."""
        return min(self.rank, target.matrix_shape[0])

    def basis(self, target: Target, key: Key) -> Tensor:
        """P, (rows, r) in the weights' dtype."""
        return self._bases.of(target, key, [(target.matrix_shape[0], self.rank_of(target))])[0]

    def psi(self, target: Target, key: Key) -> Tensor:
        """Psi of a key, (r, columns) in the weights' dtype."""
        r, columns, device = self.rank_of(target), target.matrix_shape[1], target.data.device
        if target.name in self._small:
            drawn = self._together.draw(key, target.name)
        else:
            drawn = kernels.noise("gaussian", key, target.name, 0, r * columns, device, target.fast)
        return drawn.view(r, columns).to(target.data.dtype)

    def factors(self, target: Target, key: Key) -> Factors | None:
        return None if target.data.dim() < 2 else Factors(self.basis(target, key), self.psi(target, key).T, 1.0)

    def plain(self, target: Target, key: Key, start: int, stop: int) -> Tensor:
        return self._dense.block(target, key, start, stop)

    def combined(self, target: Target, terms: Sequence[tuple[Key, float]]) -> None:
        return None  # here it is v that differs between the keys

    def state_elements(self, targets: Sequence[Target]) -> int:
        bases = sum(t.matrix_shape[0] * self.rank_of(t) for t in targets if t.data.dim() >= 2)
        return bases + self._together.elements + self._dense.state_elements(targets)


@final
class MatrixSign(Rule):
    """`W <- W - lr P NS(G)` for matrices; vectors take SGD steps of `vector_lr`."""

    in_parts = True

    by_factors = True

    def __init__(self, vector_lr: float) -> None:
        self.vector_lr = vector_lr

    def change(self, target: Target, direction: Direction, probes: Sequence[Probe], lr: float) -> Factors | None:
        if target.data.dim() < 2:
            return None
        direction = direction.everywhere()  # the basis itself, whatever part of the scope a step trains
        assert isinstance(direction, LeftBasis)
        terms = [probe.coef * direction.psi(target, probe.key).to(torch.float64) for probe in probes]
        g, p = torch.stack(terms).sum(0), direction.basis(target, probes[0].key)
        wide = torch.float64 if p.dtype == torch.float64 else torch.float32
        # No gradient has no sign: the factors must then be zero, so that no bit of a weight changes.
        left = (-lr if bool(g.any()) else 0.0) * p.to(wide)
        return Factors(left, newton_schulz(g).T.to(wide), 1.0)

    def update(self, block: Block, probes: Sequence[Probe], lr: float, weight_decay: float) -> Tensor:
        return Sgd().update(block, probes, self.vector_lr if lr else 0.0, weight_decay)


def newton_schulz(g: Tensor, steps: int = 5) -> Tensor:
    """About U V' of g = U S V', (r, n) in the dtype of `g`: singular values land between about 0.7 and 1.2."""
    if g.shape[0] > g.shape[1]:
        return newton_schulz(g.T, steps).T
    x: Tensor = g / (g.square().sum().sqrt() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


@checked
def ZOMuon(
    model: nn.Module,
    lr: float = 1e-2,
    eps: float = 1e-3,
    *,
    rank: int = 64,
    interval: int = 100,
    vector_lr: float = 1e-7,
    queries: int = 4,
    seed: int = 0,
    **options: Any,
) -> ZerothOrder:
    """ZO-Muon on `model`; `options` are those of `ZerothOrder`. Raises ConfigError for what cannot be."""
    for name, value in (("rank", rank), ("interval", interval)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}. Remedy: rank 64, interval 100 are usual.")
    if not 0 <= vector_lr < math.inf:
        raise ConfigError(f"vector_lr must be a number >= 0, got {vector_lr}. Remedy: 1e-7, or 0 to leave vectors.")
    return ZerothOrder(
        model,
        lr=lr,
        direction=LeftBasis(rank, interval),
        estimator=OneSided(eps, queries),
        rule=MatrixSign(vector_lr),
        seed=seed,
        method="zo_muon",
        arguments={
            "eps": eps,
            "rank": rank,
            "interval": interval,
            "vector_lr": vector_lr,
            "queries": queries,
        },
        **options,
    )
