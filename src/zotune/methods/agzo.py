"""AGZO: activation-guided zeroth-order optimisation (arXiv 2601.17261, ICML 2026).

    for step t:
        f_0 = L(W), and in the same forward, for every linear layer with inputs H (n x tokens):
            Y = H Omega, Omega ~ N(0, 1);   K times: Y = H H' qr(Y);   A = qr(Y)  (n x r);  H is freed
        R ~ N(0, 1)^{m x r};   Z = R A' (* sqrt(n / r) with normalize="rms")
        c = [L(W + eps Z) - f_0] / eps
        W <- W - lr c Z                               everything else: z ~ N(0, I), as MeZO

The gradient of a linear layer is (its output's gradient) H', so its rows lie in the span of H: A spans the leading part
of that. Symbols: r -> rank, K -> rounds, mu -> eps. Defaults from the paper: rank 1, 3 rounds, one-sided. `sided="two"`
takes central differences for one forward more, as the ports and the comparison in arXiv 2609.35257 do.

Scale. The paper's Z has norm near sqrt(m r), MeZO's sqrt(m n). With normalize="rms" (the default) the norms agree, so
that eps and lr near MeZO's serve; the paper's own radius, 1e-7 to 1e-4, belongs to normalize="none".

A layer y = x W (GPT-2's) has its inputs at the rows of W: there Z = A R'. Whatever multiplies a matrix in scope with
activations shows its inputs, not linear modules alone.

Differs from the paper in: `normalize`, `queries`; tables, convolutions and matrices that no product of the centre pass
meets get a dense z, since they show no inputs, and a scope of nothing else is refused; a weight used several times in a
forward shows its first inputs, padded positions included; with micro-batches the basis comes from the first one.
Differs from the released code in: not compared, it was not available to us.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from zotune import kernels
from zotune.arguments import checked
from zotune.direction import Factors, State, Target
from zotune.errors import ConfigError
from zotune.estimate import Estimator, Point, Probe, TwoSided
from zotune.factored import Normalize, OrDense, orthonormal
from zotune.noise import Key, Law, Purpose
from zotune.optimizer import ZerothOrder
from zotune.rule import Sgd


@final
class InputSpan(OrDense):
    """`Z = R A'`, A the leading directions of the layer's inputs of this step; nothing outlives the step."""

    of_matrices = True
    reads_inputs = True

    def __init__(self, rank: int, rounds: int, law: Law, normalize: Normalize) -> None:
        super().__init__(law, rank)
        self.rounds, self.normalize = rounds, normalize
        self._bases: dict[str, tuple[int, Tensor]] = {}  # (step, A), A in the weight's dtype
        self._turned: set[str] = set()  # the weights of layers x @ W, whose columns are not those of H

    def see(self, target: Target, key: Key, inputs: Tensor, transposed: bool = False) -> None:
        (self._turned.add if transposed else self._turned.discard)(target.name)
        rank, start = min(self.rank, inputs.shape[1]), Key(key.seed, key.step, 0, Purpose.BASIS)
        with torch.inference_mode(False), torch.no_grad():
            h = inputs.to(torch.float64)
            omega = kernels.noise("gaussian", start, target.name, 0, len(h) * rank, h.device).view(-1, rank)
            basis = span(h, omega.to(torch.float64), self.rounds)
            self._bases[target.name] = key.step, basis.to(target.data.dtype)

    def factors(self, target: Target, key: Key) -> Factors | None:
        step, basis = self._bases.get(target.name, (-1, None))
        if basis is None or step != key.step:
            return None
        rank, turned = basis.shape[1], target.name in self._turned
        random = (self.right if turned else self.left)(target, key)[:, :rank].to(target.data.dtype)
        scale = (len(basis) / rank) ** 0.5 if self.normalize == "rms" else 1.0
        return Factors(basis, random, scale) if turned else Factors(random, basis, scale)

    def observe(self, targets: Sequence[Target], probes: Sequence[Probe]) -> None:
        self._bases.clear()

    def load_state(self, state: State) -> None:
        self._bases.clear()

    def state_elements(self, targets: Sequence[Target]) -> int:
        # A layer x @ W is known for one once it was seen.
        inputs = sum(t.matrix_shape[t.name not in self._turned] for t in targets if t.data.dim() >= 2)
        return inputs * self.rank + super().state_elements(targets)


def span(inputs: Tensor, omega: Tensor, rounds: int) -> Tensor:
    """Orthonormal (columns, r) after `rounds` power iterations on `inputs' inputs`; `omega` is (tokens, r)."""
    y = inputs.T @ omega
    for _ in range(rounds):
        y = inputs.T @ (inputs @ orthonormal(y))
    return orthonormal(y)


@final
class OneSided(Estimator):
    """`coef = (L(theta + eps z) - L(theta)) / (eps n)` for n directions; n + 1 evaluations, the centre first."""

    def __init__(self, eps: float, queries: int = 1) -> None:
        TwoSided(eps, queries)  # the same arguments are refused
        self.eps, self.queries = eps, queries

    def points(self, seed: int, step: int) -> list[Point]:
        keys = [Key(seed, step, query) for query in range(self.queries)]
        return [Point(keys[0], 0.0), *(Point(key, self.eps) for key in keys)]

    def probes(self, seed: int, step: int, losses: Sequence[float]) -> list[Probe]:
        centre, steps = losses[0], self.eps * self.queries
        return [Probe(Key(seed, step, q), (loss - centre) / steps, (loss, centre)) for q, loss in enumerate(losses[1:])]


@checked
def AGZO(
    model: nn.Module,
    lr: float = 1e-6,
    eps: float = 1e-3,
    *,
    rank: int = 1,
    rounds: int = 3,
    sided: Literal["one", "two"] = "one",
    normalize: Normalize = "rms",
    law: Law = "gaussian",
    queries: int = 1,
    seed: int = 0,
    **options: Any,
) -> ZerothOrder:
    """AGZO on `model`; `options` are those of `ZerothOrder`. Raises ConfigError for a rank or rounds below 1."""
    for name, value in (("rank", rank), ("rounds", rounds)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}. Remedy: rank 1 and 3 rounds are the paper's.")
    arguments = {"eps": eps, "rank": rank, "rounds": rounds, "sided": sided, "normalize": normalize, "law": law}
    return ZerothOrder(
        model,
        lr=lr,
        direction=InputSpan(rank, rounds, law, normalize),
        estimator=OneSided(eps, queries) if sided == "one" else TwoSided(eps, queries),
        rule=Sgd(),
        seed=seed,
        method="agzo",
        arguments=arguments | {"queries": queries},
        **options,
    )
