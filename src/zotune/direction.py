"""How z is drawn for one tensor from a key: the Direction, and the kinds that several methods share.

A direction is pure: until the step commits, the same target, key and slice give the same bits, however often and in
whatever order they are asked for. It learns in three places only: from the initial weights in `prepare`, from a layer's
inputs in `see` (before the step's first draw), and from what a step found in `observe` (after its update).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import gcd
from typing import final

import torch
from torch import Tensor

from zotune import kernels
from zotune.estimate import Probe
from zotune.noise import Key, Law, noise_rows

# Named tensors: what a part of a method carries from step to step.
State = dict[str, Tensor]

# Tensors up to this size are drawn together, one call for all of them: per-call overhead would dominate otherwise.
_SMALL = 1 << 14
# Numbers of joint draws that are kept for a step; at least four keys' are, whatever their size.
_ROOM = 1 << 24


@final
@dataclass(frozen=True)
class Factors:
    """`scale * u @ v.T` with `u` (rows, r) and `v` (columns, r). One tensor's factors of the same `basis` share v."""

    u: Tensor
    v: Tensor
    scale: float
    basis: int | None = None


@final
@dataclass(frozen=True, eq=False)
class Target:
    """One parameter in scope: its canonical name, its data, and whether compiled kernels serve it.

    `pending` is an update that is not yet folded into `data`: the parameter's value is the sum of both.
    """

    name: str
    data: Tensor
    fast: bool = False
    pending: Factors | None = None

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(rows, columns): the first dimension, and the product of the others (1 for vectors)."""
        rows = self.data.shape[0] if self.data.dim() else 1
        return rows, self.data.numel() // max(rows, 1)

    def slices(self, limit: int) -> Iterator[tuple[int, int]]:
        """(start, stop) of consecutive slices of about `limit` elements: whole rows, whole blocks of the stream."""
        rows, columns = self.matrix_shape
        aligned = 128 // gcd(columns, 128)  # rows whose elements fill whole blocks
        step = max(aligned, limit // max(columns, 1) // aligned * aligned) * columns
        for start in range(0, rows * columns, max(step, 1)):
            yield start, min(start + step, rows * columns)

    def value(self, start: int, stop: int) -> Tensor:
        """Elements `start:stop` of the flattened value, (n,); whole rows, and wide, where an update is pending."""
        part = self.data.reshape(-1)[start:stop]
        if self.pending is None:
            return part
        p, columns = self.pending, self.matrix_shape[1]
        wide = part if part.dtype == torch.float64 else part.to(torch.float32)
        u = p.u[start // columns : stop // columns]
        return kernels.add_low_rank(wide.view(-1, columns), u, p.v, p.scale, [1.0], self.fast)[0].flatten()


@final
@dataclass(frozen=True, eq=False)
class Signed:
    """`z = U * (r s')`: U is the direction of `base` at `key`; `r` (rows,) and `s` (columns,; None: all +1) hold signs.

    Many directions can share one U and yet be hardly alike. U without factors holds numbers of the weights' dtype.
    """

    base: Direction
    key: Key
    r: Tensor
    s: Tensor | None


class Direction(ABC):
    """The law of z. Subclasses implement `block`; the rest has defaults that a faster twin may replace."""

    by_elements = False
    """Whether `observe` learns of single elements or rows from the whole of its own z: none can then move in part."""

    reads_inputs = False
    """Whether `see` must be called before a step's first draw: such a method cannot be replayed without data."""

    of_matrices = False
    """Whether nothing of the method is left where no tensor has two dimensions: such a scope is refused."""

    may_wait = False
    """Whether an update along z can be made after later steps were evaluated: z depends on key and tensor alone."""

    in_parts = False
    """Whether z and what is learned need no more of a tensor than name, shape and dtype: so for sharded models."""

    def prepare(self, targets: Sequence[Target]) -> None:  # noqa: B027 - most directions have nothing to prepare
        """Called once, with the initial weights, before the first draw."""

    def see(  # noqa: B027 - most directions are blind
        self, target: Target, key: Key, inputs: Tensor, transposed: bool = False
    ) -> None:
        """What the matrix of `target` is multiplied with at the unperturbed weights of the key's step.

        x (tokens, columns) of a layer `x @ W'`; transposed: x (tokens, rows) of a layer `x @ W`.
        """

    def observe(self, targets: Sequence[Target], probes: Sequence[Probe]) -> None:  # noqa: B027
        """Called after the update of every step, with the probes that made it: the place to learn from them."""

    def state(self) -> State:
        """What was learned: a run continued from later weights must be given it."""
        return {}

    def load_state(self, state: State) -> None:  # noqa: B027 - most directions have no state
        """Take back what `state` returned."""

    def active(self, target: Target, key: Key) -> bool:
        """Whether z is anything but zero on this tensor: what is not active is neither perturbed nor updated."""
        return True

    def everywhere(self) -> Direction:
        """The same law with every tensor active: for the proof of lanes, which must hold whatever a step leaves out."""
        return self

    def gain(self, target: Target, key: Key) -> float:
        """A factor of the update alone, one per tensor (the inverse of a sampling probability, say)."""
        return 1.0

    def window(self) -> int:
        """For how many steps, from a multiple of it on, `factors` keeps its `v`: so long updates can be summed in u."""
        return 1

    def stream(self, target: Target, key: Key) -> Law | None:
        """The law of z, where z is the key's plain noise: one pass can then draw it, add it and round the sum."""
        return None

    def combined(self, target: Target, terms: Sequence[tuple[Key, float]]) -> Factors | None:
        """`sum of scale * z(key)` over terms (key, scale) as one low-rank matrix, where z has such a form."""
        return None

    def is_joint(self, target: Target) -> bool:
        """Whether z of this small tensor is drawn whole and dense, with that of others: `joint` serves it."""
        return False

    def joint(self, targets: Sequence[Target], key: Key) -> Tensor:
        """z of several tensors that are `is_joint`, each flattened, one behind the other: (n,) float32."""
        raise NotImplementedError(f"{type(self).__name__} draws no tensors together")

    def combined_all(
        self, targets: Sequence[Target], terms: Sequence[Sequence[tuple[Key, float]]]
    ) -> list[Factors | None]:
        """`combined` of several tensors, with their own terms each."""
        return [self.combined(target, own) for target, own in zip(targets, terms, strict=True)]

    @abstractmethod
    def block(self, target: Target, key: Key, start: int, stop: int) -> Tensor:
        """z of the elements `start:stop` of the flattened parameter, (stop - start,) float32 (or wider)."""

    def rows(self, target: Target, key: Key, rows: Tensor) -> Tensor:
        """z of some rows, (r, columns) float32; `rows` (r,) int64."""
        columns = target.matrix_shape[1]
        drawn = [self.block(target, key, row * columns, (row + 1) * columns) for row in rows.tolist()]
        return torch.stack(drawn) if drawn else target.data.new_empty(0, columns, dtype=torch.float32)

    def factors(self, target: Target, key: Key) -> Factors | None:
        """The low-rank form of z, where it has one."""
        return None

    def signed(self, target: Target, key: Key) -> Signed | None:
        """The form of z that shares its numbers with other keys and differs in signs, where it has one."""
        return None

    def add(self, target: Target, key: Key, start: int, w: Tensor, scales: Sequence[float]) -> list[Tensor]:
        """`w + s * z[start:start + len(w)]` for each scale, (len(w),) in `w.dtype`, rounded as `add_scaled` does."""
        z = self.block(target, key, start, start + w.numel())
        return [kernels.add_scaled(w, z, scale) for scale in scales]

    def add_sum(self, target: Target, terms: Sequence[tuple[Key, float]], start: int, w: Tensor) -> Tensor:
        """`w + sum of scale * z(key)` over terms (key, scale), of the elements from `start`: (len(w),) in `w.dtype`."""
        for key, scale in terms:
            w = self.add(target, key, start, w, [scale])[0]
        return w

    def state_elements(self, targets: Sequence[Target]) -> int:
        """How many numbers the direction keeps beyond the weights: the declared memory."""
        return 0


Kind = tuple[torch.device, torch.dtype]


@final
class Together:
    """Whole draws of many small tensors in one call, kept for the latest `steps` steps: all keys, if there is room.

    An earlier step is drawn tensor by tensor, until several tensors in a row are asked for it: what goes through many
    past steps for one tensor after the other would otherwise draw all tensors for each of them.
    """

    def __init__(self, law: Law, steps: int = 1) -> None:
        self._law: Law = law
        self._kinds: dict[str, Kind] = {}
        self._columns: dict[str, int] = {}
        self._sizes: dict[Kind, dict[str, int]] = {}
        self._drawn: dict[tuple[Key, Kind], dict[str, Tensor]] = {}
        self._steps, self._span = list[int](), steps  # in their order
        self._asked = -1, ""  # the earlier step that was drawn alone last, and the tensor
        self._most = 0  # numbers that were kept at one time

    def __contains__(self, name: str) -> bool:
        return name in self._kinds

    def add(
        self, name: str, count: int, device: torch.device, dtype: torch.dtype = torch.float32, columns: int = 0
    ) -> None:
        """Register a tensor of `count` elements, to be drawn in `dtype`; as a matrix, if it has `columns`."""
        self._kinds[name] = device, dtype
        self._sizes.setdefault((device, dtype), {})[name] = count
        if columns:
            self._columns[name] = columns

    def draw(self, key: Key, name: str) -> Tensor:
        """The noise of a registered tensor, (count,) or (count / columns, columns) in its dtype."""
        kind = self._kinds[name]
        if key.held is not None:  # its words change under way: nothing that was drawn may be kept
            return self._alone(key, name, kind)
        if key.step not in self._steps:
            step, last = self._asked
            if self._steps and key.step < self._steps[-1] and (step != key.step or last == name):
                self._asked = key.step, name
                return self._alone(key, name, kind)
            self._steps = sorted([*self._steps, key.step][-self._span :])
            self._drawn = {one: drawn for one, drawn in self._drawn.items() if one[0].step in self._steps}
        self._asked = -1, ""
        drawn = self._drawn.get((key, kind))
        if drawn is None:
            (device, dtype), sizes = kind, self._sizes[kind]
            held = self._held()
            if held + sum(sizes.values()) > _ROOM and sum(other == kind for _, other in self._drawn) >= 4:
                # Nothing is dropped for it: an update asks for every key, tensor after tensor, and would redraw all.
                return self._alone(key, name, kind)
            values = kernels.noise_many(self._law, key, tuple(sizes.items()), device, dtype)
            drawn = {each: self._shaped(each, value) for each, value in zip(sizes, values, strict=True)}
            self._drawn[key, kind] = drawn
            self._most = max(self._most, self._held())
        return drawn[name]

    def _alone(self, key: Key, name: str, kind: Kind) -> Tensor:
        value = kernels.noise(self._law, key, name, 0, self._sizes[kind][name], kind[0])
        return self._shaped(name, value.to(kind[1]))

    def _shaped(self, name: str, value: Tensor) -> Tensor:
        return value.view(-1, self._columns[name]) if name in self._columns else value

    def _held(self) -> int:
        return sum(sum(self._sizes[kind].values()) for _, kind in self._drawn)

    @property
    def elements(self) -> int:
        """Numbers kept at most so far, at least those of one key: it grows with the directions of a step."""
        return max(self._most, sum(count for sizes in self._sizes.values() for count in sizes.values()))


@final
class Dense(Direction):
    """Independent entries: z ~ N(0, 1) through the quantile table, or random signs."""

    may_wait = True
    in_parts = True

    def __init__(self, law: Law = "gaussian") -> None:
        self.law: Law = law
        self._small = Together(law)

    def prepare(self, targets: Sequence[Target]) -> None:
        for target in targets:
            if target.data.numel() <= _SMALL:
                self._small.add(target.name, target.data.numel(), target.data.device)

    def stream(self, target: Target, key: Key) -> Law | None:
        return None if target.name in self._small else self.law

    def is_joint(self, target: Target) -> bool:
        return target.name in self._small

    def joint(self, targets: Sequence[Target], key: Key) -> Tensor:
        return torch.cat([self._small.draw(key, target.name) for target in targets])

    def block(self, target: Target, key: Key, start: int, stop: int) -> Tensor:
        if target.name in self._small:
            return self._small.draw(key, target.name)[start:stop]
        return kernels.noise(self.law, key, target.name, start, stop, target.data.device, target.fast)

    def rows(self, target: Target, key: Key, rows: Tensor) -> Tensor:
        return noise_rows(self.law, key, target.name, rows, target.matrix_shape[1])

    def add(
        self,
        target: Target,
        key: Key,
        start: int,
        w: Tensor,
        scales: Sequence[float],
        below: tuple[Tensor, float] | None = None,
    ) -> list[Tensor]:
        """As `Direction.add`; `below = (reference, h)` leaves alone what is large, as `kernels.add_noise` does."""
        if target.name not in self._small:
            return kernels.add_noise(w, self.law, key, target.name, start, scales, target.fast, below)
        sums = super().add(target, key, start, w, scales)
        if below is None:
            return sums
        small = below[0].abs() <= below[1]
        return [torch.where(small, moved, w) for moved in sums]

    def state_elements(self, targets: Sequence[Target]) -> int:
        return self._small.elements
