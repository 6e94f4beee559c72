"""AIM-ZO: zeroth-order optimisation in a maintained span of the layers' inputs (arXiv 2609.35257).

    for step t:
        centre forward; for every linear layer with inputs H (tokens x n):
            Q <- qr(Q + eta_q H'(H Q) / tokens)                       Q (n x K), signs fixed by R's diagonal
        for probe i = 1..N:
            Q_i = the first h columns of Q and k - h of the others, uniformly
            a_i ~ N(0, I_m), b_i ~ N(0, I_k);   Z_i = a_i (Q_i b_i)' * sqrt(m n) / (|a_i| |b_i|)
            y_i = L(W + eps_t Z_i)
        W <- W - lr sum_i (y_i - mean y) Z_i / ((N - 1) eps_t)        everything else: z_i ~ N(0, I)

Symbols: K -> width, h -> head, k -> active, N -> probes, eta_q -> basis_rate. Defaults from the paper: 128, 48, 64, 15,
0.3; lr 5e-4 (to 1.5e-3), eps 6e-5 (to 8e-5). `eps_steps` is the length of the paper's cosine decay from eps to eps/4;
without it eps is constant. A layer with fewer than K inputs has them all as its width, and its k and h at most that.

The centre's loss is recorded, but a leave-one-out estimate does not use it: N + 1 forwards for N coefficients.
With K = k = h = r and eta_q without bound a step's Q is one round of AGZO's power iteration from the last step's Q.

A layer y = x W (GPT-2's) has its inputs at the rows of W: there Z_i = Q_i b_i a_i' with the same norm. Whatever
multiplies a matrix in scope with activations shows its inputs, not linear modules alone.

Differs from the paper in: what shows no inputs (tables, vectors, convolutions) gets a dense z, and a scope of nothing
else is refused; a weight used several times shows its first inputs, padded positions included; with micro-batches Q
learns from the first one; a layer that the centre pass does not reach keeps its Q. Q is computed in float64 and kept in
float32.
Differs from the released code in: not compared line by line; probes never write a weight here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from zotune import kernels
from zotune.arguments import checked
from zotune.direction import Factors, State, Target
from zotune.errors import ConfigError
from zotune.estimate import Estimator, Point, Probe
from zotune.factored import OrDense, orthonormal
from zotune.noise import Key, Law, Purpose, words
from zotune.optimizer import ZerothOrder
from zotune.rule import Sgd

# The first basis of a run is drawn where no query's numbers are.
_FIRST = 2**32 - 1
_TURNED = "/turned"  # in the state, behind a parameter's name


@final
class MaintainedSpan(OrDense):
    """Rank-one z of norm sqrt(m n) in the span of columns of a basis that follows the layer's inputs."""

    of_matrices = True
    reads_inputs = True

    def __init__(self, width: int, head: int, active: int, rate: float, law: Law, probes: int = 1) -> None:
        super().__init__(law, 1)
        self.probes = probes
        self.width, self.head, self.active_columns, self.rate = width, head, active, rate
        self._kept: dict[str, Tensor] = {}  # Q after the last step, (inputs, width) float32
        self._next: dict[str, tuple[int, Tensor]] = {}  # (step, Q) of the step that is under way
        self._made: dict[tuple[str, Key], Factors] = {}
        self._turned: set[str] = set()  # the weights of layers x @ W, at whose rows the inputs are

    def see(self, target: Target, key: Key, inputs: Tensor, transposed: bool = False) -> None:
        (self._turned.add if transposed else self._turned.discard)(target.name)
        with torch.inference_mode(False), torch.no_grad():
            h, basis = inputs.to(torch.float64), self._kept.get(target.name)
            fits = basis is not None and len(basis) == h.shape[1]  # not after a change of sides
            q = basis.to(h) if basis is not None and fits else self._first(target, key)
            q = orthonormal(q + self.rate / len(h) * (h.T @ (h @ q)))
            self._next[target.name] = key.step, q.to(torch.float32)
        self._made.clear()

    def _inputs(self, target: Target) -> int:
        """How many inputs the layer has, as far as is known: the columns of x @ W', the rows of x @ W."""
        return target.matrix_shape[target.name not in self._turned]

    def _first(self, target: Target, key: Key) -> Tensor:
        inputs = self._inputs(target)
        width, key = min(self.width, inputs), Key(key.seed, 0, _FIRST, Purpose.BASIS)
        start = kernels.noise("gaussian", key, target.name, 0, inputs * width, target.data.device)
        return orthonormal(start.view(inputs, width).to(torch.float64))

    def factors(self, target: Target, key: Key) -> Factors | None:
        step, basis = self._next.get(target.name, (-1, None))
        if basis is None or step != key.step:
            basis = self._kept.get(target.name)
        if basis is None:
            return None
        if (target.name, key) not in self._made:
            self._made[target.name, key] = self._draw(target, key, basis)
        return self._made[target.name, key]

    def _draw(self, target: Target, key: Key, basis: Tensor) -> Factors:
        columns = self.columns(target.name, key, basis.shape[1]).to(basis.device)
        at = Key(key.seed, key.step, key.query, Purpose.BASIS)
        b = kernels.noise("gaussian", at, target.name, 0, len(columns), basis.device).to(torch.float64)
        turned, v = target.name in self._turned, basis[:, columns].to(torch.float64) @ b
        a = (self.right if turned else self.left)(target, key)
        dtype, (rows, width) = target.data.dtype, target.matrix_shape
        scale = (rows * width) ** 0.5 / float(a.to(torch.float64).norm())
        a, v = a.to(dtype), (v / v.norm()).unsqueeze(1).to(dtype)
        return Factors(v, a, scale) if turned else Factors(a, v, scale)

    def columns(self, name: str, key: Key, width: int) -> Tensor:
        """Which columns of a basis of `width` a probe uses, (k,) int64: the head, and as many of the tail as fit."""
        active = min(self.active_columns, width)
        head = min(self.head, active)
        tail = width - head
        draws = words(Key(key.seed, key.step, key.query, Purpose.CHOICE), name, torch.arange(-(-tail // 4)))
        chosen = draws.flatten()[:tail].argsort(stable=True)[: active - head]
        return torch.cat([torch.arange(head), head + chosen])

    def observe(self, targets: Sequence[Target], probes: Sequence[Probe]) -> None:
        # What a step that was left out has seen is no part of the course: a replay has not seen it.
        step = probes[0].key.step
        self._kept.update({name: basis for name, (seen, basis) in self._next.items() if seen == step})
        self._next.clear()
        self._made.clear()

    def state(self) -> State:
        return self._kept | {name + _TURNED: torch.tensor(1) for name in self._turned & self._kept.keys()}

    def load_state(self, state: State) -> None:
        self._next.clear()
        self._made.clear()
        self._kept = {name: basis for name, basis in state.items() if not name.endswith(_TURNED)}
        self._turned = {name.removesuffix(_TURNED) for name in state if name.endswith(_TURNED)}

    def state_elements(self, targets: Sequence[Target]) -> int:
        # The basis of before stays until the step is over; the factors of all probes are kept during the step.
        matrices = [target for target in targets if target.data.dim() >= 2]
        bases = sum(2 * inputs * min(self.width, inputs) for inputs in map(self._inputs, matrices))
        factors = self.probes * sum(sum(target.matrix_shape) for target in matrices)
        return bases + factors + super().state_elements(targets)


@final
class LeaveOneOut(Estimator):
    """`coef_i = (y_i - mean y) / ((N - 1) eps_t)`: each probe against the mean of the others; N + 1 evaluations."""

    def __init__(self, eps: float, probes: int, eps_steps: int | None = None) -> None:
        if not 0 < eps < math.inf:
            raise ConfigError(f"eps must be a positive number, got {eps}. Remedy: 6e-5 is the paper's.")
        if probes < 2:
            raise ConfigError(f"probes must be at least 2, got {probes}. Remedy: 15 is the paper's.")
        if eps_steps is not None and eps_steps < 1:
            raise ConfigError(f"eps_steps must be at least 1, got {eps_steps}. Remedy: the number of steps of the run.")
        self.eps, self.count, self.eps_steps = eps, probes, eps_steps

    def radius(self, step: int) -> float:
        """eps of a step: constant, or falling along half a cosine to a quarter."""
        if self.eps_steps is None:
            return self.eps
        done = min(step / self.eps_steps, 1.0)
        return self.eps * (0.25 + 0.75 * (1 + math.cos(math.pi * done)) / 2)

    def points(self, seed: int, step: int) -> list[Point]:
        keys = [Key(seed, step, query) for query in range(self.count)]
        return [Point(keys[0], 0.0), *(Point(key, self.radius(step)) for key in keys)]

    def probes(self, seed: int, step: int, losses: Sequence[float]) -> list[Probe]:
        mean, steps = math.fsum(losses[1:]) / self.count, (self.count - 1) * self.radius(step)
        return [Probe(Key(seed, step, i), (loss - mean) / steps, (loss,)) for i, loss in enumerate(losses[1:])]


@checked
def AIMZO(
    model: nn.Module,
    lr: float = 5e-4,
    eps: float = 6e-5,
    *,
    width: int = 128,
    head: int = 48,
    active: int = 64,
    probes: int = 15,
    basis_rate: float = 0.3,
    eps_steps: int | None = None,
    law: Law = "gaussian",
    seed: int = 0,
    **options: Any,
) -> ZerothOrder:
    """AIM-ZO on `model`; `options` are those of `ZerothOrder`. Raises ConfigError unless head <= active <= width."""
    if not 0 <= head <= active <= width or not active:
        raise ConfigError(
            f"head {head}, active {active}, width {width} are not in order. Remedy: 48, 64 and 128 are the paper's."
        )
    if not 0 <= basis_rate < math.inf:
        raise ConfigError(f"basis_rate must be a number >= 0, got {basis_rate}. Remedy: 0.3 is the paper's.")
    arguments = {"eps": eps, "width": width, "head": head, "active": active, "probes": probes}
    return ZerothOrder(
        model,
        lr=lr,
        direction=MaintainedSpan(width, head, active, basis_rate, law, probes),
        estimator=LeaveOneOut(eps, probes, eps_steps),
        rule=Sgd(),
        seed=seed,
        method="aimzo",
        arguments=arguments | {"basis_rate": basis_rate, "eps_steps": eps_steps, "law": law},
        **options,
    )
