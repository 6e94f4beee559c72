"""SubZero: random subspaces from orthonormal bases (arXiv 2410.08989, ICCV 2025), and SubZero+ (arXiv 2608.15665).

    for step t:
        if t mod F = 0:  U, V = orthonormal columns, m x r and n x r, for every matrix W (m x n)
        Z ~ N(0, 1)^{r x r};   Z_hat = sqrt(m n) / r  U Z V'
        rho = [L(W + eps Z_hat) - L(W - eps Z_hat)] / (2 eps)
        W <- W - lr rho Z_hat            vectors: plain MeZO

    SubZero+ (sides=1, adam=True, queries=99):
        G = 1/q sum_k rho_k Z_k,   rho_k = [L(W + eps Z_hat_k) - L(W)] / eps
        M, S = Adam's moments of G;   W <- W - lr U [M_hat / (sqrt(S_hat) + 1e-8)] V'       vectors: SGD with vector_lr

Symbols: r -> rank, F -> interval, q -> queries, Adam's betas -> beta1, beta2. Defaults: rank 48, interval 1000, lr and
eps those of MeZO, which the scale lets carry over: E Z_hat Z_hat' is the identity; beta1 0.9, beta2 0.95. The rank of a
matrix is at most its smaller side. With sides=1 and adam=False it is SubZero+ with SGD.

`reshape=True` gives matrices the most nearly square shape of their size first, as the paper does for the factors of
LoRA and for prefixes; such a z has no low-rank form in the weight's own shape, so the weight is made for each forward.

Memory: U, V and Z: r (m + n) + queries r^2 for each matrix; Adam's moments are 2 r^2 more.

Differs from the papers in: signs are fixed, so that U and V are uniform (Haar); where a window ends under Adam the
moments begin anew, since they belong to the old basis; vector_lr (vectors are left open there; none where lr is 0); a
scope of vectors alone, where nothing but MeZO would be left, is refused.
Differs from the released code in: queries > 1; U and V are pure functions of the window.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from zotune.arguments import checked
from zotune.direction import Direction, Factors, State, Target, Together
from zotune.errors import ConfigError
from zotune.estimate import OneSided, Probe, TwoSided
from zotune.factored import Factored, low_rank_slice
from zotune.noise import Key
from zotune.optimizer import ZerothOrder
from zotune.rule import Block, Rule, Sgd
from zotune.subspace import Bases


@final
class Subspace(Factored):
    """`Z_hat = sqrt(m n) / r U Z V'`: a Gaussian core between bases that last `interval` steps; dense on vectors."""

    of_matrices = True
    in_parts = True

    def __init__(self, rank: int, interval: int, reshape: bool) -> None:
        self.rank, self.interval, self.reshape = rank, interval, reshape
        self._bases, self._core = Bases(interval), Together("gaussian")

    def prepare(self, targets: Sequence[Target]) -> None:
        for target in targets:
            count = target.data.numel() if target.data.dim() < 2 else self.rank_of(target) ** 2
            self._core.add(target.name, count, target.data.device)

    def shape_of(self, target: Target) -> tuple[int, int]:
        """(m, n) of the matrix that the subspace is of."""
        rows, columns = target.matrix_shape
        if not self.reshape:
            return rows, columns
        size = rows * columns
        short = next(n for n in range(math.isqrt(size), 0, -1) if size % n == 0)
        return short, size // short

    def rank_of(self, target: Target) -> int:
        """The rank, at most the smaller side of the matrix."""
        return min(self.rank, *self.shape_of(target))

    def bases(self, target: Target, key: Key) -> tuple[Tensor, Tensor]:
        """(U, V): (m, r) and (n, r) in the weights' dtype."""
        (m, n), r = self.shape_of(target), self.rank_of(target)
        u, v = self._bases.of(target, key, [(m, r), (n, r)])
        return u, v

    def core(self, target: Target, key: Key) -> Tensor:
        """Z of a key, (r, r) float32."""
        return self._core.draw(key, target.name).view(2 * (self.rank_of(target),))

    def spread(self, target: Target, key: Key) -> Factors:
        """Z_hat in the shape that the subspace is of."""
        (m, n), (u, v) = self.shape_of(target), self.bases(target, key)
        left = u.to(torch.float64) @ self.core(target, key).to(torch.float64)
        return Factors(left.to(u.dtype), v, math.sqrt(m * n) / self.rank_of(target))

    def factors(self, target: Target, key: Key) -> Factors | None:
        if target.data.dim() < 2 or self.shape_of(target) != target.matrix_shape:
            return None
        return self.spread(target, key)

    def plain(self, target: Target, key: Key, start: int, stop: int) -> Tensor:
        if target.data.dim() < 2:
            return self._core.draw(key, target.name)[start:stop]
        return low_rank_slice(self.spread(target, key), start, stop)

    def window(self) -> int:
        return self.interval

    def state_elements(self, targets: Sequence[Target]) -> int:
        bases = sum(self.rank_of(t) * sum(self.shape_of(t)) for t in targets if t.data.dim() >= 2)
        return bases + self._core.elements


@final
class CoreAdam(Rule):
    """Adam on the cores of matrices, begun anew in each window; vectors take SGD steps of `vector_lr`."""

    in_parts = True

    by_factors = True

    def __init__(self, rank: int, beta1: float, beta2: float, vector_lr: float) -> None:
        self.rank, self.beta1, self.beta2, self.vector_lr = rank, beta1, beta2, vector_lr
        self.moments: dict[str, tuple[Tensor, Tensor]] = {}  # (r, r) float64 each
        self.taken: dict[str, tuple[int, int]] = {}  # the window of the moments, and the steps since they began

    def change(self, target: Target, direction: Direction, probes: Sequence[Probe], lr: float) -> Factors | None:
        if target.data.dim() < 2:
            return None
        direction = direction.everywhere()  # the basis itself, whatever part of the scope a step trains
        assert isinstance(direction, Subspace)
        (u, v), window = direction.bases(target, probes[0].key), probes[0].key.step // direction.interval
        g = torch.zeros(u.shape[1], u.shape[1], dtype=torch.float64, device=u.device)
        for probe in probes:
            g = g + probe.coef * direction.core(target, probe.key).to(torch.float64)
        began, taken = self.taken.get(target.name, (-1, 0))
        if began != window:
            self.moments[target.name], taken = (torch.zeros_like(g), torch.zeros_like(g)), 0
        m, s = self.moments[target.name]
        m = self.beta1 * m.to(g.device) + (1 - self.beta1) * g
        s = self.beta2 * s.to(g.device) + (1 - self.beta2) * g * g
        self.moments[target.name], self.taken[target.name] = (m, s), (window, taken + 1)
        unbiased = (s / (1 - self.beta2 ** (taken + 1))).sqrt() + 1e-8
        core = m / (1 - self.beta1 ** (taken + 1)) / unbiased
        wide = torch.float64 if u.dtype == torch.float64 else torch.float32
        return Factors((-lr * (u.to(torch.float64) @ core)).to(wide), v, 1.0)

    def update(self, block: Block, probes: Sequence[Probe], lr: float, weight_decay: float) -> Tensor:
        return Sgd().update(block, probes, self.vector_lr if lr else 0.0, weight_decay)

    def state(self) -> State:
        moments = {f"{name}/{i}": part for name, both in self.moments.items() for i, part in enumerate(both)}
        return moments | {f"{name}/taken": torch.tensor(taken) for name, taken in self.taken.items()}

    def load_state(self, state: State) -> None:
        names = [name.removesuffix("/0") for name in state if name.endswith("/0")]
        self.moments = {name: (state[f"{name}/0"].clone(), state[f"{name}/1"].clone()) for name in names}
        self.taken = {name: (int(state[f"{name}/taken"][0]), int(state[f"{name}/taken"][1])) for name in names}

    def state_elements(self, targets: Sequence[Target]) -> int:
        return sum(2 * min(self.rank, *t.matrix_shape) ** 2 + 2 for t in targets if t.data.dim() >= 2)


@checked
def SubZero(
    model: nn.Module,
    lr: float = 1e-6,
    eps: float = 1e-3,
    *,
    rank: int = 48,
    interval: int = 1000,
    sides: Literal[1, 2] = 2,
    adam: bool = False,
    beta1: float = 0.9,
    beta2: float = 0.95,
    vector_lr: float = 1e-7,
    reshape: bool = False,
    queries: int = 1,
    seed: int = 0,
    **options: Any,
) -> ZerothOrder:
    """SubZero or SubZero+ on `model`; `options` are those of `ZerothOrder`. Raises ConfigError for what cannot be."""
    for name, value in (("rank", rank), ("interval", interval)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}. Remedy: rank 48, interval 1000 are usual.")
    for name, beta in (("beta1", beta1), ("beta2", beta2)):
        if not 0 <= beta < 1:
            raise ConfigError(f"{name} must be in [0, 1), got {beta}. Remedy: 0.9 and 0.95 are SubZero+'s.")
    if not 0 <= vector_lr < math.inf:
        raise ConfigError(f"vector_lr must be a number >= 0, got {vector_lr}. Remedy: 1e-7, or 0 to leave vectors.")
    if adam and reshape:
        raise ConfigError("adam and reshape do not go together. Remedy: choose one of them.")
    return ZerothOrder(
        model,
        lr=lr,
        direction=Subspace(rank, interval, reshape),
        estimator=TwoSided(eps, queries) if sides == 2 else OneSided(eps, queries),
        rule=CoreAdam(rank, beta1, beta2, vector_lr) if adam else Sgd(),
        seed=seed,
        method="subzero",
        arguments={
            "eps": eps,
            "rank": rank,
            "interval": interval,
            "sides": sides,
            "adam": adam,
            "beta1": beta1,
            "beta2": beta2,
            "vector_lr": vector_lr,
            "reshape": reshape,
            "queries": queries,
        },
        **options,
    )
