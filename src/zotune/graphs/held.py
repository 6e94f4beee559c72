"""A step's directions, and its updates that wait to be folded, in places that stay: what a recorded forward reads.

Low-rank factors and small tensors are drawn before a recording is played and copied into their places. Larger dense
tensors are drawn while it plays, from the words of the step's key, which have a place too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from zotune.direction import Direction, Factors, Target
from zotune.factored import Factored
from zotune.graphs.graph import Unrecordable
from zotune.noise import Key

# Tensors up to this size are drawn beforehand.
_SMALL = 1 << 14


@final
class Held(Factored):
    """`inner` at the keys of a recorded forward. `fill` gives the places the numbers of other keys.

    Raises Unrecordable for a direction that has no places: whose larger tensors depend on more than the key.
    """

    def __init__(self, inner: Direction, targets: Sequence[Target], keys: Sequence[Key]) -> None:
        self._inner, self._targets, self._number = inner, targets, {key: i for i, key in enumerate(keys)}
        self._low: dict[tuple[str, int], Factors] = {}
        self._small: dict[tuple[str, int], Tensor] = {}
        self._joint = [target for target in targets if inner.is_joint(target)]
        self._whole: list[Tensor] = []  # the joint tensors' numbers, one place for each key
        self._words: dict[torch.device, list[Tensor]] = {}
        for number, key in enumerate(keys):
            self._reserve(number, key)
        self._bases: dict[tuple[str, int], tuple[Key, int | None] | None] = {}

    def _reserve(self, number: int, key: Key) -> None:
        inner = self._inner
        if self._joint:
            self._whole.append(inner.joint(self._joint, key).clone())
            parts = torch.split(self._whole[-1], [target.data.numel() for target in self._joint])
            self._small |= {(t.name, number): part for t, part in zip(self._joint, parts, strict=True)}
        for target in self._targets:
            at, factors = (target.name, number), inner.factors(target, key)
            if at in self._small:
                continue
            if inner.signed(target, key) is not None:
                raise Unrecordable(f"the directions of {target.name} share their numbers")
            if factors is not None:
                self._low[at] = replace(factors, u=factors.u.clone(), v=factors.v.clone())
            elif target.data.numel() <= _SMALL:
                self._small[at] = inner.block(target, key, 0, target.data.numel()).clone()
            elif not inner.may_wait:
                raise Unrecordable(f"the direction of {target.name} depends on more than the step's key")
            else:
                words = self._words.setdefault(target.data.device, [])
                if len(words) <= number:
                    words.append(torch.zeros(2, dtype=torch.int64, device=target.data.device))

    def fill(self, keys: Sequence[Key]) -> None:
        """Draw at `keys`, which stand for the recording's in their order, into the places."""
        inner, places, values = self._inner, list[Tensor](), list[Tensor]()
        for number, key in enumerate(keys):
            if self._joint:
                places.append(self._whole[number])
                values.append(inner.joint(self._joint, key))
            joint = {target.name for target in self._joint}
            for target in self._targets:
                at = (target.name, number)
                if at in self._low:
                    new = inner.factors(target, key)
                    assert new is not None
                    places.append(self._low[at].u)
                    values.append(new.u)
                    # One basis serves many steps: it is copied when it changes.
                    basis = None if new.basis is None else (replace(key, step=0, query=0), new.basis)
                    if basis is None or self._bases.get(at) != basis:
                        self._bases[at] = basis
                        places.append(self._low[at].v)
                        values.append(new.v)
                elif at in self._small and target.name not in joint:
                    places.append(self._small[at])
                    values.append(inner.block(target, key, 0, target.data.numel()))
            for words in self._words.values():
                for place, word in zip(words[number], key.words(), strict=True):
                    place.fill_(word)  # a number goes as an argument: nothing is copied from the host's memory
        copy_all(places, values)

    def waiting(self, pending: Mapping[str, Factors]) -> dict[str, Factors]:
        """Places for updates that wait to be folded; their v is that of the directions where it is the same basis."""
        found = {}
        for name, factors in pending.items():
            own = self._low.get((name, 0))
            v = own.v if own is not None and own.basis is not None and own.basis == factors.basis else factors.v.clone()
            found[name] = Factors(factors.u.clone(), v, factors.scale, factors.basis)
        return found

    def shares(self, name: str, factors: Factors) -> bool:
        """Whether the v of an update's place is that of the directions."""
        own = self._low.get((name, 0))
        return own is not None and factors.v is own.v

    def _held(self, target: Target, key: Key) -> Key:
        return replace(key, held=self._words[target.data.device][self._number[key]])

    def factors(self, target: Target, key: Key) -> Factors | None:
        return self._low.get((target.name, self._number[key]))

    def plain(self, target: Target, key: Key, start: int, stop: int) -> Tensor:
        small = self._small.get((target.name, self._number[key]))
        return self._inner.block(target, self._held(target, key), start, stop) if small is None else small[start:stop]

    def rows(self, target: Target, key: Key, rows: Tensor) -> Tensor:
        at = (target.name, self._number[key])
        if at in self._low:
            return super().rows(target, key, rows)
        if at in self._small:
            return self._small[at].view(target.matrix_shape)[rows]
        return self._inner.rows(target, self._held(target, key), rows)

    def add(self, target: Target, key: Key, start: int, w: Tensor, scales: Sequence[float]) -> list[Tensor]:
        at = (target.name, self._number[key])
        if at in self._low or at in self._small:
            return super().add(target, key, start, w, scales)
        return self._inner.add(target, self._held(target, key), start, w, scales)


def copy_all(places: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Each value into its place, in a few calls for all. Raises Unrecordable where a shape is another one."""
    for place, value in zip(places, values, strict=True):
        if place.shape != value.shape or place.dtype != value.dtype:
            raise Unrecordable(f"what is drawn has another shape in this step: {tuple(value.shape)}")
    if places:
        torch._foreach_copy_(list(places), list(values))
