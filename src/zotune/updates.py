"""What a step's probes do to the parameters: at once, summed until the next fold, or when a block comes back.

The optimizer decides when; `rule.py` decides by how much, `writing.py` writes a slice at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor

from zotune.direction import Direction, Factors, Target
from zotune.distributed.sharded import is_part, put
from zotune.estimate import Point, Probe
from zotune.factored import add_up_all
from zotune.joint import chunks, write_jointly
from zotune.noise import Key, Purpose
from zotune.perturb import Perturber
from zotune.refusals import no_bank
from zotune.rule import Block, Rule, decayed, decayed_sum
from zotune.writing import write

if TYPE_CHECKING:
    from zotune.engines.offload import Offload


# Tensors whose low-rank changes are made at once, where they are written at once.
_AT_ONCE = 32


@final
@dataclass(frozen=True, slots=True)
class Move:
    """A tensor and its group's learning rate and weight decay in a step."""

    target: Target
    lr: float
    weight_decay: float


@final
class Updates:
    """Changes what a perturber perturbs. A `key` is that of the step: it seeds the rounding too."""

    def __init__(
        self, perturber: Perturber, direction: Direction, rule: Rule, offload: Offload | None, method: str
    ) -> None:
        self._perturber, self._direction, self._rule = perturber, direction, rule
        self._offload, self._method = offload, method

    def apply(self, key: Key, probes: list[Probe], rates: Sequence[tuple[float, float]], wait: bool) -> None:
        """Move every target along the probes. rates: lr and weight decay of each; wait: low-rank changes are summed
        until `fold`.
        """
        self._rule.begin(probes)
        with torch.no_grad():
            targets = self._perturber.targets()
            moves = [Move(t, lr, wd) for t, (lr, wd) in zip(targets, rates, strict=True)]
            moves = self._move_jointly(moves, key, probes)
            # Changes that wait are kept anyway; of others a few tensors' at a time.
            size = max(1, len(moves)) if wait else _AT_ONCE
            for start in range(0, len(moves), size):
                self._move(moves[start : start + size], key, probes, wait)
        self._direction.observe(targets, probes)

    def _move_jointly(self, moves: Sequence[Move], key: Key, probes: list[Probe]) -> list[Move]:
        """Move the small tensors that can be moved as one; returns the others."""
        if self._offload is not None or not self._rule.in_parts:
            return list(moves)
        groups: dict[Any, list[Move]] = {}
        for move in moves:
            target = move.target
            whole = target.pending is None and not is_part(target.data) and self._perturber.bank(target.name) is None
            if whole and self._direction.is_joint(target):
                kind = target.data.dtype, target.data.device, move.lr, move.weight_decay
                groups.setdefault(kind, []).append(move)
        done: set[str] = set()
        for group in groups.values():
            if len(group) < 2:
                continue
            lr, weight_decay = group[0].lr, group[0].weight_decay

            def value(block: Block, lr: float = lr, weight_decay: float = weight_decay) -> Tensor:
                return self._rule.update(block, probes, lr, weight_decay)

            for targets in chunks([move.target for move in group]):
                write_jointly(targets, self._direction, _dither(key), value)
            done.update(move.target.name for move in group)
        return [move for move in moves if move.target.name not in done]

    def _move(self, moves: Sequence[Move], key: Key, probes: list[Probe], wait: bool) -> None:
        active = [m for m in moves if any(self._direction.active(m.target, probe.key) for probe in probes)]
        found = self._rule.changes([m.target for m in active], self._direction, probes, [m.lr for m in active])
        changes = {m.target.name: change for m, change in zip(active, found, strict=True)}
        waiting: list[tuple[Target, Factors]] = []
        written: list[tuple[Move, Factors]] = []
        for move in moves:
            target, lr, weight_decay = move.target, move.lr, move.weight_decay
            change = changes.get(target.name)
            banked = self._perturber.bank(target.name) is not None
            if change is not None and (wait or banked):
                waiting.append((target, change))
            elif change is not None:
                written.append((move, change))
            elif target.name not in changes:  # it rests: the method is not asked, so that what it keeps of it rests too
                if lr * weight_decay:
                    self._write(target, key, partial(decayed, lr=lr, weight_decay=weight_decay))
            elif banked:
                raise no_bank(self._method, target.name)
            else:
                along = self._rule.along(target, self._direction, probes, lr, weight_decay)
                value = partial(self._rule.update, probes=probes, lr=lr, weight_decay=weight_decay)
                self._write(target, key, value, along)
        self._sum_up(waiting)
        some = _not_zero([change.u for _, change in written])
        for (move, change), moving in zip(written, some, strict=True):
            if moving or move.lr * move.weight_decay:
                value = partial(decayed_sum, lr=move.lr, weight_decay=move.weight_decay)
                self._write(replace(move.target, pending=change), key, value)

    def _sum_up(self, waiting: Sequence[tuple[Target, Factors]]) -> None:
        """Add changes to what is pending of their tensors."""
        new = {target.name: change for target, change in waiting}
        old = [(target, target.pending) for target, _ in waiting if target.pending is not None]
        sums = add_up_all([[(pending, 1.0), (new[target.name], 1.0)] for target, pending in old])
        new |= {target.name: total for (target, _), total in zip(old, sums, strict=True)}
        self._perturber.pending |= new

    def fold(self, key: Key) -> None:
        """Write the low-rank updates that are still pending into the weights (or banks); `key` is of the last step."""
        with torch.no_grad():
            pending = [(target, target.pending) for target in self._perturber.targets() if target.pending is not None]
            some = _not_zero([factors.u for _, factors in pending])
            for target in [target for (target, _), moving in zip(pending, some, strict=True) if moving]:
                assert target.pending is not None
                bank = self._perturber.bank(target.name)
                if bank is not None:
                    bank.append(target.pending)
                else:
                    self._write(target, key, lambda block: decayed_sum(block, 0.0, 0.0))
        self._perturber.pending.clear()

    def _write(
        self, target: Target, key: Key, value: Callable[[Block], Tensor], along: tuple[Key, float] | None = None
    ) -> None:
        """Write `value` into the target: now, or when its block comes to the device."""
        dither = _dither(key)

        def later(data: Tensor) -> None:
            write(replace(target, data=data), self._direction, dither, value, along)

        if self._offload is None or not self._offload.defer(target.name, later):
            write(target, self._direction, dither, value, along)

    def settle(self) -> None:
        """Write what waits for its block to come to the device."""
        if self._offload is not None:
            self._offload.settle()

    @contextmanager
    def settled(self, key: Key) -> Iterator[None]:
        """Within the context the model computes with pending updates included; nothing is written."""
        self.settle()
        if not self._perturber.pending:
            yield
            return
        with self._perturber.at(Point(key, 0.0)):
            yield

    def named(self) -> dict[str, Tensor]:
        """What is trained by name: the parameters, and the factors of those kept in a bank."""
        found: dict[str, Tensor] = {}
        for name, weight in self._perturber.weights().items():
            bank = self._perturber.bank(name)
            found |= {name: weight} if bank is None else bank.tensors(name)
        return found

    def put(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `named` gave; nothing may be pending. Of a sharded model each process takes its own part."""
        with torch.no_grad():
            for name, weight in self._perturber.weights().items():
                bank = self._perturber.bank(name)
                if bank is not None:
                    bank.take(name, dict(tensors))
                else:
                    put(weight, tensors[name])


def _dither(key: Key) -> Key:
    return Key(key.seed, key.step, 0, Purpose.DITHER)


def _not_zero(tensors: Sequence[Tensor]) -> list[bool]:
    """Whether each has a number that is not zero: adding zeros would still turn -0.0 into 0.0. A GPU is asked once."""
    if not tensors:
        return []
    found: list[bool] = torch.stack([tensor.any().to(tensors[0].device) for tensor in tensors]).tolist()
    return found
