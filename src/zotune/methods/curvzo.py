"""CurvZO: curvature-guided sampling of tensors (arXiv 2603.21725, ICML 2026), in the block form of its experiments.

    once:   s_j = 0.01 for every tensor j = 1..J;  share = 0.4
    step t: p_j = s_j / sum s;   pi_j = min(1, lambda p_j) with sum pi_j = B = floor(share J)   (Poisson-PPS)
            m_j = 1 with probability pi_j, alone for each tensor;   none: the tensor of the largest pi
            c = [L(W + eps m z) - L(W - eps m z)] / (2 eps)
            W_j <- W_j - lr (c / pi_j) z_j   for the sampled tensors: unbiased (Horvitz-Thompson)
            e <- 0.9 e + 0.1 |c|;   w_j = (|z_j|^2 / pi_j^2) / (the sum of these over the sampled)
            s_j <- (1 - beta) s_j + beta (|c| / e) w_j   for the sampled
            every 20 steps, with v = s / mean s, K = (sum sqrt v)^2 / sum v, H = entropy(v / J) / log J:
                share <- clip(0.9 share + 0.1 [0.1 + 0.7 (0.7 K / J + 0.3 (1 - H))], 0.1, 0.8)

Symbols: beta, share as here; e starts at the first |c|. Defaults: share 0.4, beta 0.1; lr and eps as MeZO.

Guard rails, ours: 1 / pi multiplies the step of rarely sampled tensors, so pi_j is at least `pi_min`; |c| is clipped
to `clip` times the running mean of |c| (None: never). Clipping is what makes the estimate biased where it acts.

Differs from the paper in: the guard rails; 1 / pi uses the exact probability, which for the tensor of the largest pi
includes its part of "none"; numel stands for |z_j|^2, its expectation, instead of another pass over the noise;
`by_size=False` leaves sizes out of w; several queries share the step's sample, and their mean |c| is what is learned.
Differs from the released code in: not compared; what is here follows a port, the code was an anonymous review copy.
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
from zotune.estimate import Estimator, Point, Probe, TwoSided
from zotune.noise import Key, Law, Purpose, words
from zotune.optimizer import ZerothOrder
from zotune.rule import Sgd

_EVERY, _LEAST, _MOST = 20, 0.1, 0.8


@final
class Sampled(Direction):
    """A dense z on tensors sampled with probability proportional to a learned score, zero on the others."""

    in_parts = True

    def __init__(self, law: Law, share: float, beta: float, pi_min: float, by_size: bool) -> None:
        self.z = Dense(law)
        self.share, self.beta, self.pi_min, self.by_size = share, beta, pi_min, by_size
        self.scores: dict[str, float] = {}
        self.mean, self.steps = 0.0, 0
        self._drawn: tuple[tuple[int, int], dict[str, float]] = ((-1, -1), {})

    def prepare(self, targets: Sequence[Target]) -> None:
        self.z.prepare(targets)
        self.scores = {target.name: 0.01 for target in targets}

    def everywhere(self) -> Direction:
        return self.z

    def sample(self, key: Key) -> dict[str, float]:
        """The tensors of the key's step, with the probability that each of them had."""
        if self._drawn[0] != (key.seed, key.step):
            at, pi = Key(key.seed, key.step, 0, Purpose.CHOICE), self.probabilities()
            found = {name: p for name, p in pi.items() if _uniform(at, name) < p}
            largest = max(pi, key=lambda name: pi[name])
            none = math.prod(1 - p for p in pi.values())
            if largest in found or not found:
                found[largest] = pi[largest] + none
            self._drawn = (key.seed, key.step), found
        return self._drawn[1]

    def probabilities(self) -> dict[str, float]:
        """pi of every tensor: proportional to its score, from pi_min to 1; the budget is their sum before pi_min."""
        budget = max(1, math.floor(self.share * len(self.scores)))
        pi = proportional(list(self.scores.values()), budget)
        return {name: max(p, self.pi_min) for name, p in zip(self.scores, pi, strict=True)}

    def active(self, target: Target, key: Key) -> bool:
        return target.name in self.sample(key)

    def gain(self, target: Target, key: Key) -> float:
        return 1 / self.sample(key).get(target.name, 1.0)

    def block(self, target: Target, key: Key, start: int, stop: int) -> Tensor:
        if not self.active(target, key):
            return torch.zeros(stop - start, device=target.data.device)
        return self.z.block(target, key, start, stop)

    def rows(self, target: Target, key: Key, rows: Tensor) -> Tensor:
        z = self.z.rows(target, key, rows)
        return z if self.active(target, key) else torch.zeros_like(z)

    def add(self, target: Target, key: Key, start: int, w: Tensor, scales: Sequence[float]) -> list[Tensor]:
        return self.z.add(target, key, start, w, scales) if self.active(target, key) else [w] * len(scales)

    def observe(self, targets: Sequence[Target], probes: Sequence[Probe]) -> None:
        sample, slope = self.sample(probes[0].key), math.fsum(abs(probe.coef) for probe in probes)
        self.mean = 0.9 * self.mean + 0.1 * slope if self.steps else slope
        sizes = {t.name: t.data.numel() if self.by_size else 1 for t in targets if t.name in sample}
        energy = {name: size / sample[name] ** 2 for name, size in sizes.items()}
        total = math.fsum(energy.values())
        for name, own in energy.items() if self.mean else ():
            share = slope / self.mean * own / total
            self.scores[name] = (1 - self.beta) * self.scores[name] + self.beta * share
        self.steps += 1
        if self.steps % _EVERY == 0:
            self.share = adapted(self.share, list(self.scores.values()))
        self._drawn = ((-1, -1), {})

    def state(self) -> State:
        scalars = {"share": self.share, "mean": self.mean, "steps": self.steps}
        named = {f"score/{name}": score for name, score in self.scores.items()} | scalars
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in named.items()}

    def load_state(self, state: State) -> None:
        values = {name: float(value) for name, value in state.items()}
        self.scores = {name: values[f"score/{name}"] for name in self.scores}
        self.share, self.mean, self.steps = values["share"], values["mean"], int(values["steps"])
        self._drawn = ((-1, -1), {})

    def state_elements(self, targets: Sequence[Target]) -> int:
        return len(self.scores) + 3 + self.z.state_elements(targets)


def _uniform(key: Key, name: str) -> float:
    """A number in [0, 1) for one tensor, of 32 bits."""
    return (int(words(key, name, torch.zeros(1, dtype=torch.int64))[0, 0]) & 0xFFFFFFFF) / 2**32


def proportional(scores: Sequence[float], budget: float) -> list[float]:
    """min(1, lambda * score) with the sum `budget`, exactly: the largest are full, the rest share what is left."""
    if budget >= len(scores):
        return [1.0] * len(scores)
    left, pi = budget, [0.0] * len(scores)
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    for done, i in enumerate(order):
        rest = math.fsum(scores[j] for j in order[done:])
        if left * scores[i] < rest:
            for j in order[done:]:
                pi[j] = left * scores[j] / rest
            break
        pi[i] = 1.0
        left -= 1
    return pi


def adapted(share: float, scores: Sequence[float]) -> float:
    """The share of tensors of the next twenty steps: more when the scores are spread over many tensors."""
    count, total = len(scores), math.fsum(scores)
    effective = math.fsum(math.sqrt(score) for score in scores) ** 2 / total
    p = [score / total for score in scores]
    entropy = -math.fsum(x * math.log(x) for x in p if x) / math.log(count) if count > 1 else 1.0
    new = 0.9 * share + 0.1 * (0.1 + 0.7 * (0.7 * effective / count + 0.3 * (1 - entropy)))
    # Rounded, so that a last-bit difference between maths libraries cannot reach the sample.
    return round(min(max(new, _LEAST), _MOST), 9)


@final
class Clipped(Estimator):
    """Central differences, |coef| clipped to `clip` times the running mean of what it was in earlier steps."""

    def __init__(self, eps: float, queries: int, clip: float | None) -> None:
        self._inner, self.clip, self.eps = TwoSided(eps, queries), clip, eps
        self.mean = 0.0

    def halve(self) -> None:
        super().halve()
        self._inner.halve()

    def points(self, seed: int, step: int) -> list[Point]:
        return self._inner.points(seed, step)

    def probes(self, seed: int, step: int, losses: Sequence[float]) -> list[Probe]:
        found = self._inner.probes(seed, step, losses)
        if self.clip is None or not self.mean:
            return found
        most = self.clip * self.mean / len(found)
        return [Probe(p.key, min(max(p.coef, -most), most), p.losses) for p in found]

    def observe(self, seed: int, step: int, losses: Sequence[float]) -> None:
        slope = math.fsum(abs(probe.coef) for probe in self.probes(seed, step, losses))
        self.mean = 0.9 * self.mean + 0.1 * slope if self.mean else slope

    def state(self) -> State:
        return {"mean": torch.tensor(self.mean, dtype=torch.float64)}

    def load_state(self, state: State) -> None:
        self.mean = float(state["mean"])


@checked
def CurvZO(
    model: nn.Module,
    lr: float = 1e-6,
    eps: float = 1e-3,
    *,
    share: float = 0.4,
    beta: float = 0.1,
    pi_min: float = 0.05,
    clip: float | None = 10.0,
    by_size: bool = True,
    law: Law = "gaussian",
    queries: int = 1,
    seed: int = 0,
    **options: Any,
) -> ZerothOrder:
    """CurvZO on `model`; `options` are those of `ZerothOrder`. Raises ConfigError for numbers out of their range."""
    for name, value in (("share", share), ("beta", beta), ("pi_min", pi_min)):
        if not 0 < value <= 1:
            raise ConfigError(f"{name} must be in (0, 1], got {value}. Remedy: 0.4, 0.1 and 0.05 are the defaults.")
    if clip is not None and not clip > 0:
        raise ConfigError(f"clip must be positive, got {clip}. Remedy: 10 is the default; None never clips.")
    arguments = {"eps": eps, "share": share, "beta": beta, "pi_min": pi_min, "clip": clip, "by_size": by_size}
    return ZerothOrder(
        model,
        lr=lr,
        direction=Sampled(law, share, beta, pi_min, by_size),
        estimator=Clipped(eps, queries, clip),
        rule=Sgd(),
        seed=seed,
        method="curvzo",
        arguments=arguments | {"law": law, "queries": queries},
        **options,
    )
