"""The variants of MeZO in its paper's appendices (arXiv 2305.17333, A and B): parts that `MeZO` puts together.

* Growing samples (A): n_t = max(1, floor(t / T * n)) directions at step t.
* One-point residual feedback (B.5, definition 8): c = [L(theta_t + eps z_t) - L(theta_{t-1} + eps z_{t-1})] / eps.
* Momentum and Adam without stored moments (B.2): both are sums over past (key, c), drawn again in every step.
* Modified variance and expectation (B.3, B.4; definitions 6, 7): theta +- eps z / d, then c d z, or c z, to update;
  d is one number per tensor, from the weights' norms or from `gradient_norms` (proposition 1).

Layer-wise training is the option `blocks` of every method.

Differs from the paper in: the first one-point step has no earlier loss and moves nothing; the paper prints the
estimate without z_t. Past probes are cut off where they weigh less than a thousandth of the newest in the first
moment, and Adam's averages are divided by the sum of the weights that are left: the bias correction, exact as long as
nothing is cut off. So its second moment is a mean of the last 66 steps where beta2 would reach back further. Momentum
is torch's, m <- beta m + g. d is per tensor (the paper: per layer) and divided by its mean, so that eps and lr keep
their size; a tensor of zeros has d = 1. The paper found none of these better than MeZO.
Differs from the released code in: it stores moments and gradients; its sample schedule is off unless it is named.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from zotune.direction import Dense, Direction, State, Target
from zotune.errors import ConfigError
from zotune.estimate import Estimator, Point, Probe, TwoSided
from zotune.noise import Key, Law
from zotune.perturb import Perturber
from zotune.rule import Block, Rule, decayed
from zotune.scope import select

Scaling = Literal["variance", "expectation"]
Moments = Literal["momentum", "adam"]

# Past probes that weigh less than this beside the newest are forgotten.
_NEGLIGIBLE = 1e-3
_SQUARES = 66  # steps that Adam's second moment is the mean of, at least; as many as count for beta1 0.9


@final
class GrowingSamples(Estimator):
    """Central differences along max(1, floor(t / T * n)) directions at step t, n from step T on."""

    def __init__(self, eps: float, queries: int, steps: int) -> None:
        TwoSided(eps, queries)  # refuses what it refuses
        if steps < 1:
            raise ConfigError(f"samples_over must be at least 1, got {steps}. Remedy: the number of steps of the run.")
        self.eps, self.queries, self.steps = eps, queries, steps

    def _at(self, step: int) -> TwoSided:
        return TwoSided(self.eps, max(1, min(step, self.steps) * self.queries // self.steps))

    def points(self, seed: int, step: int) -> list[Point]:
        return self._at(step).points(seed, step)

    def probes(self, seed: int, step: int, losses: Sequence[float]) -> list[Probe]:
        return self._at(step).probes(seed, step, losses)


@final
class ResidualFeedback(Estimator):
    """`coef = (L_t - L_{t-1}) / eps` from one evaluation a step; what is remembered is the last step's loss."""

    def __init__(self, eps: float) -> None:
        TwoSided(eps)  # refuses what it refuses
        self.eps = eps
        self.previous: float | None = None

    def points(self, seed: int, step: int) -> list[Point]:
        return [Point(Key(seed, step), self.eps)]

    def probes(self, seed: int, step: int, losses: Sequence[float]) -> list[Probe]:
        before = losses[0] if self.previous is None else self.previous
        return [Probe(Key(seed, step), (losses[0] - before) / self.eps, (losses[0], before))]

    def observe(self, seed: int, step: int, losses: Sequence[float]) -> None:
        self.previous = losses[0]

    def state(self) -> State:
        return {} if self.previous is None else {"previous": torch.tensor(self.previous, dtype=torch.float64)}

    def load_state(self, state: State) -> None:
        self.previous = float(state["previous"]) if "previous" in state else None


@final
class PastProbes(Rule):
    """Momentum or Adam from the probes of the last `history` steps; the state is those probes, no moments.

    Without `history` as many steps as the powers of beta1 count for (above 1/1000), and 66 at least for Adam. Its
    second moment is then a mean over these steps, weighted by powers of beta2, not over the thousands that beta2 0.999
    would reach back: older probes are not kept.

    The directions of past steps are drawn again, so they must depend on nothing but their key.
    """

    in_parts = True

    def __init__(
        self,
        moments: Moments,
        beta1: float,
        beta2: float,
        history: int | None = None,
        zeta: float = 1e-8,
        queries: int = 1,
    ) -> None:
        for name, beta in (("beta1", beta1), ("beta2", beta2)):
            if not 0 <= beta < 1:
                raise ConfigError(f"{name} must be in [0, 1), got {beta}. Remedy: 0.9 and 0.999 are usual.")
        if history is not None and history < 1:
            raise ConfigError(f"history must be at least 1, got {history}. Remedy: leave it out, or 66 for beta1 0.9.")
        self.moments, self.beta1, self.beta2, self.zeta = moments, beta1, beta2, zeta
        # Squares want a mean over some steps even where the first moment has none: of one step it would be a sign.
        least = _SQUARES if moments == "adam" else 1
        self.history = history if history is not None else max(_significant(beta1), least)
        self.queries = queries  # at most, in a step
        self.past: list[list[Probe]] = []  # of each step, the oldest first; their losses are of no use

    def begin(self, probes: Sequence[Probe]) -> None:
        self.past = [*self.past, [replace(probe, losses=()) for probe in probes]][-self.history :]

    def update(self, block: Block, probes: Sequence[Probe], lr: float, weight_decay: float) -> Tensor:
        value = decayed(block, lr, weight_decay)
        # Adding zero times z would still turn -0.0 into 0.0.
        if not probes or not lr or not any(probe.coef for step in self.past for probe in step):
            return value
        if self.moments == "momentum":
            for weight, step in self._weighted(self.beta1):
                value = self._along(block, value, step, -lr * weight)
            return value
        mean, square = self._averages(block, value)
        return value - lr * mean / (square.sqrt() + self.zeta)

    def _weighted(self, beta: float) -> list[tuple[float, list[Probe]]]:
        """Past steps, the newest first, with their powers of beta: products, so that every machine has the same."""
        found, weight = [], 1.0
        for step in reversed(self.past):
            found.append((weight, step))
            weight *= beta
        return found

    def _along(self, block: Block, value: Tensor, step: Sequence[Probe], scale: float) -> Tensor:
        for probe in step:
            if probe.coef:
                gain = block.direction.gain(block.target, probe.key)
                value = block.plus(value, probe, scale * probe.coef * gain)
        return value

    def _averages(self, block: Block, like: Tensor) -> tuple[Tensor, Tensor]:
        mean, square = torch.zeros_like(like), torch.zeros_like(like)
        first, second = self._weighted(self.beta1), self._weighted(self.beta2)
        for (weight, step), (other, _) in zip(first, second, strict=True):
            gradient = self._along(block, torch.zeros_like(like), step, 1.0)
            mean += weight * gradient
            square += other * gradient.square()
        # By a tensor on the device: a GPU would turn a division by a plain number into another rounding.
        totals = [torch.full_like(like[:1], math.fsum(w for w, _ in weights)) for weights in (first, second)]
        return mean / totals[0], square / totals[1]

    def state(self) -> State:
        probes = [probe for step in self.past for probe in step]
        low = (1 << 32) - 1
        keys = [(p.key.seed & low, p.key.seed >> 32, p.key.step, p.key.query) for p in probes]
        coefs = torch.tensor([probe.coef for probe in probes], dtype=torch.float64)
        return {"keys": torch.tensor(keys, dtype=torch.int64).reshape(-1, 4), "coefs": coefs}

    def load_state(self, state: State) -> None:
        steps: dict[int, list[Probe]] = {}
        for (low, high, step, query), coef in zip(state["keys"].tolist(), state["coefs"].tolist(), strict=True):
            steps.setdefault(step, []).append(Probe(Key(high << 32 | low, step, query), coef, ()))
        self.past = list(steps.values())

    def state_elements(self, targets: Sequence[Target]) -> int:
        return 4 * self.queries * self.history  # the three numbers of a key, and the coefficient


def _significant(beta: float) -> int:
    """How many powers of beta are above what is negligible, 1 included."""
    count, weight = 1, beta
    while weight > _NEGLIGIBLE:
        count, weight = count + 1, weight * beta
    return count


@final
class Rescaled(Direction):
    """`z / d` with one d per tensor; the update gets `d z` (variance) or `z` (expectation) through its gain.

    z / d is rounded once, and all that moves along it takes that: rows that are looked up, sums, updates.
    """

    def __init__(self, law: Law, scaling: Scaling, scales: Mapping[str, float] | None = None) -> None:
        self.z, self.scaling, self.given = Dense(law), scaling, scales
        self.d: dict[str, float] = {}

    def prepare(self, targets: Sequence[Target]) -> None:
        self.z.prepare(targets)
        norms = {t.name: float(t.data.to(torch.float64).norm()) for t in targets} if self.given is None else self.given
        missing = [target.name for target in targets if target.name not in norms]
        if missing:
            raise ConfigError(f"scales has no number for {missing[0]}. Remedy: one for every parameter in scope.")
        wrong = [target.name for target in targets if not 0 <= norms[target.name] < math.inf]
        if wrong:
            raise ConfigError(f"the scale of {wrong[0]} is {norms[wrong[0]]}. Remedy: numbers that are not negative.")
        mean = math.fsum(norms[target.name] for target in targets) / len(targets)
        # Rounded, so that the order in which a machine sums a norm cannot reach the weights.
        self.d = {target.name: _rounded(norms[target.name] / mean) if mean else 1.0 for target in targets}

    def state(self) -> State:
        return {name: torch.tensor(d, dtype=torch.float64) for name, d in self.d.items()}

    def load_state(self, state: State) -> None:
        self.d.update({name: float(d) for name, d in state.items()})

    def gain(self, target: Target, key: Key) -> float:
        d = self.d[target.name]
        return d * d if self.scaling == "variance" else d

    def block(self, target: Target, key: Key, start: int, stop: int) -> Tensor:
        return self._over(target, self.z.block(target, key, start, stop))

    def rows(self, target: Target, key: Key, rows: Tensor) -> Tensor:
        return self._over(target, self.z.rows(target, key, rows))

    def _over(self, target: Target, z: Tensor) -> Tensor:
        return z.to(torch.promote_types(target.data.dtype, torch.float32)) * (1 / self.d[target.name])

    def state_elements(self, targets: Sequence[Target]) -> int:
        return len(self.d) + self.z.state_elements(targets)


def _rounded(d: float) -> float:
    """Six digits; 1 for a tensor that has no size to go by."""
    return float(f"{d:.6g}") if d else 1.0


def gradient_norms(
    model: nn.Module,
    objective: Callable[[nn.Module, Any], Tensor],
    batch: Any,
    scope: str = "full",
    eps: float = 1e-3,
    seed: int = 0,
) -> dict[str, float]:
    """|L(theta + eps z_l) - L(theta - eps z_l)| / (2 eps) for each tensor l in scope, perturbed alone: an estimate of
    its gradient's norm (proposition 1) for `MeZO(scales=...)`. Two forwards per tensor; the model is not changed.
    """
    found = {}
    for name in select(model, scope):
        perturber, losses = Perturber(model, [name], Dense()), []
        for side in (eps, -eps):
            with torch.inference_mode(), perturber.at(Point(Key(seed, 0), side)):
                losses.append(float(objective(model, batch).to(torch.float64).mean()))
        found[name] = abs(losses[0] - losses[1]) / (2 * eps)
    return found
