"""GRZO: Group-Relative Zeroth-Order Optimization (arXiv 2606.02857, Findings of EMNLP 2026).

    for step t:
        U ~ N(0, 1)^{m x n} for every matrix W (m x n)
        for example i = 1..B:   r_i, s_i random signs;   Delta_i = U o (r_i s_i')
        d_i = l_i(W + sigma Delta_i) - l_i(W - sigma Delta_i)           (all examples in one forward for each side)
        a_i = d_i / (std(d) + floor)
        W <- W - lr 1/(2 sigma B) sum_i a_i Delta_i = W - lr 1/(2 sigma B) U o (R' diag(a) S)

Every example has a direction of its own, at the price of two forwards: y_i = W x_i +- sigma r_i o (U (s_i o x_i)).

Symbols: sigma -> eps, eta -> lr, B is the number of examples of the step, micro-batches together. form "dense" is the
above; "low_rank" has U = u v' / sqrt(rank) with v kept for `interval` steps; "strict" further leaves out s_i, so that
Delta_i = (r_i o u) v' / sqrt(rank) and all updates of a window lie in the span of v. normalize "none" takes a_i = d_i:
then B = 1 is MeZO along Delta. `clip` bounds |a_i|. Defaults: eps 1e-3, lr 1e-7, floor 1e-8, no clip.

Differs from the paper in: vectors (norms, biases) have z_i = random signs; an embedding is a matrix like any other (its
update reaches the rows that no example reads, too); U is rounded to the weights' dtype before use, so that probe and
update are one; rank 2, interval 50 are LoZO's. The combination with sparse masks and with quantised weights is not
here. Of its text we had the abstract and summaries.
Differs from the released code in: the code was not available to us. Its note on a floor and a clip is kept as options.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from zotune import kernels
from zotune.arguments import checked
from zotune.direction import Dense, Direction, Factors, Signed, Target, Together
from zotune.errors import ConfigError, UserError
from zotune.estimate import Estimator, Point, Probe
from zotune.factored import add_up, side_by_side
from zotune.low_rank import LowRank
from zotune.noise import Key, Law
from zotune.optimizer import ZerothOrder
from zotune.population import deviation
from zotune.rule import Sgd

Form = Literal["dense", "low_rank", "strict"]


@final
class PerExample(Estimator):
    """Both sides of one direction for each example; `coef_i = a_i / (2 eps B)`."""

    per_example = True

    def __init__(self, eps: float, normalize: Literal["std", "none"], floor: float, clip: float | None) -> None:
        if not 0 < eps < math.inf:
            raise ConfigError(f"eps must be a positive number, got {eps}. Remedy: 1e-3 is GRZO's.")
        if not 0 < floor < math.inf:
            raise ConfigError(f"floor must be a positive number, got {floor}. Remedy: 1e-8.")
        if clip is not None and not clip > 0:
            raise ConfigError(f"clip must be a positive number, got {clip}. Remedy: 3, or leave it out.")
        self.eps, self.normalize, self.floor, self.clip = eps, normalize, floor, clip

    def points(self, seed: int, step: int) -> list[Point]:
        return [Point(Key(seed, step), side, each=True) for side in (self.eps, -self.eps)]

    def check_examples(self, count: int) -> None:
        if self.normalize == "std" and count < 2:
            raise UserError(
                "grzo divides by the spread among the examples of a step, and this step has one. "
                'Remedy: more examples per step, or normalize="none".'
            )

    def probes(self, seed: int, step: int, losses: Sequence[float]) -> list[Probe]:
        count = len(losses) // 2
        self.check_examples(count)
        both = list(zip(losses[:count], losses[count:], strict=True))
        differences = [plus - minus for plus, minus in both]
        if self.normalize == "std":
            spread = deviation(differences) + self.floor
            differences = [value / spread for value in differences]
        if self.clip is not None:
            differences = [max(-self.clip, min(self.clip, value)) for value in differences]
        return [
            Probe(Key(seed, step, example), value / (2 * self.eps * count), seen)
            for example, (value, seen) in enumerate(zip(differences, both, strict=True))
        ]


@final
class Rounded(Direction):
    """Dense z, rounded to the weights' dtype: as a product in that dtype sees it."""

    def __init__(self, law: Law) -> None:
        self._z = Dense(law)

    def prepare(self, targets: Sequence[Target]) -> None:
        self._z.prepare(targets)

    def block(self, target: Target, key: Key, start: int, stop: int) -> Tensor:
        return self._z.block(target, key, start, stop).to(target.data.dtype).to(_wide(target.data.dtype))

    def rows(self, target: Target, key: Key, rows: Tensor) -> Tensor:
        return self._z.rows(target, key, rows).to(target.data.dtype).to(_wide(target.data.dtype))

    def state_elements(self, targets: Sequence[Target]) -> int:
        return self._z.state_elements(targets)


@final
class SignFlips(Direction):
    """`Delta_j = U o (r_j s_j')` for query j: one U for the step, signs for each query; signs alone for vectors."""

    in_parts = True

    def __init__(self, form: Form, rank: int, interval: int, law: Law) -> None:
        self.form = form
        self._u: Rounded | LowRank = Rounded(law) if form == "dense" else LowRank(rank, interval, law)
        self._interval = interval
        self._signs = Together("rademacher")

    def prepare(self, targets: Sequence[Target]) -> None:
        self._u.prepare([target for target in targets if target.data.dim() >= 2])
        for target in targets:
            rows, columns = target.matrix_shape
            both = target.data.dim() >= 2 and self.form != "strict"
            self._signs.add(_signs_of(target), rows + columns if both else rows, target.data.device)

    def signed(self, target: Target, key: Key) -> Signed | None:
        if target.data.dim() < 2:
            return None
        signs, rows = self._signs.draw(key, _signs_of(target)), target.matrix_shape[0]
        s = None if self.form == "strict" else signs[rows:]
        return Signed(self._u, replace(key, query=0), signs[:rows], s)

    def block(self, target: Target, key: Key, start: int, stop: int) -> Tensor:
        one = self.signed(target, key)
        if one is None:
            return self._signs.draw(key, _signs_of(target))[start:stop]
        columns = target.matrix_shape[1]
        first, last = start // columns, -(-stop // columns)
        u = one.base.block(target, one.key, first * columns, last * columns).view(-1, columns)
        return _flipped(u, one.r[first:last], one.s).flatten()[start - first * columns : stop - first * columns]

    def rows(self, target: Target, key: Key, rows: Tensor) -> Tensor:
        one = self.signed(target, key)
        if one is None:
            return self._signs.draw(key, _signs_of(target))[rows].unsqueeze(1)
        return _flipped(one.base.rows(target, one.key, rows), one.r[rows], one.s)

    def factors(self, target: Target, key: Key) -> Factors | None:
        one = self.signed(target, key)
        base = None if one is None else one.base.factors(target, one.key)
        if one is None or base is None:
            return None
        v = base.v if one.s is None else base.v * one.s.to(base.v.dtype).unsqueeze(1)
        return Factors(base.u * one.r.to(base.u.dtype).unsqueeze(1), v, base.scale)

    def window(self) -> int:
        return self._interval if self.form == "strict" else 1

    def combined(self, target: Target, terms: Sequence[tuple[Key, float]]) -> Factors | None:
        found = [(self.factors(target, key), scale) for key, scale in terms]
        if not found or found[0][0] is None:
            return None
        sum_up = add_up if self.form == "strict" else side_by_side
        return sum_up([(factors, scale) for factors, scale in found if factors is not None])

    def add_sum(self, target: Target, terms: Sequence[tuple[Key, float]], start: int, w: Tensor) -> Tensor:
        """One pass over the tensor: `sum_i scale_i r_i s_i'`, a product of the examples' rank, times U."""
        found, columns = [(self.signed(target, key), scale) for key, scale in terms], target.matrix_shape[1]
        one = found[0][0]
        if one is None or one.s is None or self.form != "dense" or start % columns or w.numel() % columns:
            return super().add_sum(target, terms, start, w)
        rows, wide = (
            slice(start // columns, (start + w.numel()) // columns),
            _wide(w.dtype),
        )
        u = torch.stack([scale * each.r[rows].to(wide) for each, scale in found if each is not None], 1)
        v = torch.stack([each.s for each, _ in found if each is not None and each.s is not None], 1)
        zeros = torch.zeros(u.shape[0], columns, dtype=wide, device=w.device)
        signs = kernels.add_low_rank(zeros, u, v.to(wide), 1.0, [1.0], target.fast)[0].flatten()
        return kernels.add_scaled(w, one.base.block(target, one.key, start, start + w.numel()) * signs, 1.0)

    def state_elements(self, targets: Sequence[Target]) -> int:
        return self._u.state_elements(targets) + self._signs.elements


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _flipped(u: Tensor, r: Tensor, s: Tensor | None) -> Tensor:
    z = u * r.unsqueeze(1)
    return z if s is None else z * s


def _signs_of(target: Target) -> str:
    # A name of its own in the stream: U and the signs share no bits.
    return f"{target.name} (signs)"


@checked
def GRZO(
    model: nn.Module,
    lr: float = 1e-7,
    eps: float = 1e-3,
    *,
    form: Form = "dense",
    rank: int = 2,
    interval: int = 50,
    normalize: Literal["std", "none"] = "std",
    floor: float = 1e-8,
    clip: float | None = None,
    law: Law = "gaussian",
    seed: int = 0,
    **options: Any,
) -> ZerothOrder:
    """GRZO on `model`; `options` are those of `ZerothOrder`. It needs an objective that gives a loss for each example.

    rank and interval matter to the forms low_rank and strict. Raises ConfigError for arguments that are none.
    """
    return ZerothOrder(
        model,
        lr=lr,
        direction=SignFlips(form, rank, interval, law),
        estimator=PerExample(eps, normalize, floor, clip),
        rule=Sgd(),
        seed=seed,
        method="grzo",
        arguments={
            "eps": eps,
            "form": form,
            "rank": rank,
            "interval": interval,
            "normalize": normalize,
            "floor": floor,
            "clip": clip,
            "law": law,
        },
        **options,
    )
