"""Directions that are low rank on some tensors, and sums of low-rank matrices."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from zotune import kernels
from zotune.direction import Dense, Direction, Factors, Target, Together
from zotune.noise import Key, Law

Normalize = Literal["none", "rms"]


class Factored(Direction):
    """A z that is `u @ v.T` on some tensors, and has another form on the others. Abstract: `factors` and `plain`."""

    @abstractmethod
    def factors(self, target: Target, key: Key) -> Factors | None:
        """The low-rank form of z, or None where it has none."""

    @abstractmethod
    def plain(self, target: Target, key: Key, start: int, stop: int) -> Tensor:
        """As `block`, of a tensor without factors."""

    def block(self, target: Target, key: Key, start: int, stop: int) -> Tensor:
        factors = self.factors(target, key)
        if factors is None:
            return self.plain(target, key, start, stop)
        return low_rank_slice(factors, start, stop)

    def rows(self, target: Target, key: Key, rows: Tensor) -> Tensor:
        factors = self.factors(target, key)
        if factors is None:
            return super().rows(target, key, rows)
        return kernels.low_rank(factors.u[rows], factors.v, factors.scale)

    def add(self, target: Target, key: Key, start: int, w: Tensor, scales: Sequence[float]) -> list[Tensor]:
        factors, columns = self.factors(target, key), target.matrix_shape[1]
        if factors is None or start % columns or w.numel() % columns:
            return super().add(target, key, start, w, scales)
        u = factors.u[start // columns : (start + w.numel()) // columns]
        sums = kernels.add_low_rank(w.view(-1, columns), u, factors.v, factors.scale, scales, target.fast)
        return [each.flatten() for each in sums]

    def combined(self, target: Target, terms: Sequence[tuple[Key, float]]) -> Factors | None:
        found = [(self.factors(target, key), scale) for key, scale in terms]
        if not found or found[0][0] is None:
            return None
        return add_up([(factors, scale) for factors, scale in found if factors is not None])


class OrDense(Factored):
    """`z = scale * u v'` on the tensors for which `factors` has that form, a dense z on the others. Abstract.

    `rank` numbers for each row of every matrix are drawn for u, or for each column where v is what is random. Vectors
    are always dense.
    """

    def __init__(self, law: Law, rank: int) -> None:
        self.law, self.rank = law, rank
        self._dense, self._left = Dense(law), Together(law)

    def prepare(self, targets: Sequence[Target]) -> None:
        self._dense.prepare([target for target in targets if target.data.dim() < 2])
        for target in targets:
            if target.data.dim() >= 2:
                self._left.add(target.name, max(target.matrix_shape) * self.rank, target.data.device)

    def left(self, target: Target, key: Key) -> Tensor:
        """The random factor, (rows, rank) float32."""
        return self._random(target, key, target.matrix_shape[0])

    def right(self, target: Target, key: Key) -> Tensor:
        """The random factor of a tensor whose u is not, (columns, rank) float32."""
        return self._random(target, key, target.matrix_shape[1])

    def _random(self, target: Target, key: Key, count: int) -> Tensor:
        # The first numbers of the key's noise, whichever side they are for.
        return self._left.draw(key, target.name)[: count * self.rank].view(-1, self.rank)

    def plain(self, target: Target, key: Key, start: int, stop: int) -> Tensor:
        return self._dense.block(target, key, start, stop)

    def is_joint(self, target: Target) -> bool:
        return target.data.dim() < 2 and self._dense.is_joint(target)

    def joint(self, targets: Sequence[Target], key: Key) -> Tensor:
        return self._dense.joint(targets, key)

    def rows(self, target: Target, key: Key, rows: Tensor) -> Tensor:
        if self.factors(target, key) is None:
            return self._dense.rows(target, key, rows)
        return super().rows(target, key, rows)

    def add(self, target: Target, key: Key, start: int, w: Tensor, scales: Sequence[float]) -> list[Tensor]:
        if self.factors(target, key) is None:
            return self._dense.add(target, key, start, w, scales)
        return super().add(target, key, start, w, scales)

    def combined(self, target: Target, terms: Sequence[tuple[Key, float]]) -> Factors | None:
        found = [(factors, scale) for key, scale in terms if (factors := self.factors(target, key)) is not None]
        if not found or len(found) < len(terms):
            return None
        return add_up(found) if all(factors.v is found[0][0].v for factors, _ in found) else side_by_side(found)

    def state_elements(self, targets: Sequence[Target]) -> int:
        return self._left.elements + self._dense.state_elements(targets)


def low_rank_slice(factors: Factors, start: int, stop: int) -> Tensor:
    """Elements `start:stop` of the flattened `scale * u @ v.T`, (stop - start,) float32 or float64."""
    columns = factors.v.shape[0]
    first, last = start // columns, -(-stop // columns)
    z = kernels.low_rank(factors.u[first:last], factors.v, factors.scale)
    return z.flatten()[start - first * columns : stop - first * columns]


def add_up(terms: Sequence[tuple[Factors, float]]) -> Factors:
    """`sum of scale * (unit * u) @ v.T` over terms that share `v`: u in float32, or float64 for float64 factors."""
    first = terms[0][0]
    wide = torch.float64 if first.u.dtype == torch.float64 else torch.float32
    total = torch.zeros_like(first.u, dtype=wide)
    for factors, scale in terms:
        # A product and a sum, never fused: the same bits on every machine.
        total = total + torch.tensor(scale * factors.scale, dtype=wide) * factors.u.to(wide)
    return Factors(total, first.v, 1.0, first.basis)


def add_up_all(sums: Sequence[Sequence[tuple[Factors, float]]]) -> list[Factors]:
    """`add_up` of several sums, bit for bit, in a few calls for all of them."""
    kinds = {(len(terms), factors.u.dtype, factors.u.device) for terms in sums for factors, _ in terms}
    if len(kinds) != 1:
        return [add_up(terms) for terms in sums]
    ((count, dtype, _),) = kinds
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    shapes = [terms[0][0].u.shape for terms in sums]
    total = None
    for number in range(count):
        found = [terms[number] for terms in sums]
        # All of them one behind the other: a few calls for any number of tensors.
        flat = torch.empty(sum(shape.numel() for shape in shapes), dtype=wide, device=sums[0][0][0].u.device)
        parts = _shaped(flat, shapes)
        torch._foreach_copy_(parts, [factors.u for factors, _ in found])
        # The scale is rounded first, as `add_up` does; a product and a sum, never fused.
        scales = torch.tensor([s * f.scale for f, s in found], dtype=wide).tolist()
        if len(set(scales)) == 1:
            flat *= scales[0]
        else:
            torch._foreach_mul_(parts, scales)
        total = flat.add_(0.0) if total is None else total.add_(flat)  # as added to zeros: -0.0 becomes 0.0
    assert total is not None
    made = zip(_shaped(total, shapes), sums, strict=True)
    return [Factors(u, terms[0][0].v, 1.0, terms[0][0].basis) for u, terms in made]


def _shaped(flat: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    parts: tuple[Tensor, ...] = torch.split(flat, [shape.numel() for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def side_by_side(terms: Sequence[tuple[Factors, float]]) -> Factors | None:
    """`sum of scale * (unit * u) @ v.T` over terms with a `v` each: of as many columns as all terms have together."""
    if not terms:
        return None
    wide = torch.float64 if terms[0][0].u.dtype == torch.float64 else torch.float32
    us = [torch.tensor(scale * f.scale, dtype=wide) * f.u.to(wide) for f, scale in terms]
    return Factors(torch.cat(us, 1), torch.cat([f.v for f, _ in terms], 1), 1.0)


def orthonormal(y: Tensor) -> Tensor:
    """The Q of `y = Q R`, (n, r) for y (n, r) with r <= n; R's diagonal is not negative, so that Q is unique."""
    q, r = torch.linalg.qr(y)
    signed: Tensor = q * torch.where(r.diagonal() < 0, -1.0, 1.0).to(q.dtype)
    return signed
