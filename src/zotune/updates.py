"""What a step's probes do to the parameters: at once, summed until the next fold, or when a block comes back.

The optimizer decides when; `rule.py` decides by how much, `writing.py` writes a slice at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

from zotune.direction import Direction, Target
from zotune.distributed.sharded import put
from zotune.estimate import Point, Probe
from zotune.factored import add_up
from zotune.noise import Key, Purpose
from zotune.perturb import Perturber
from zotune.refusals import no_bank
from zotune.rule import Block, Rule, decayed, decayed_sum
from zotune.writing import write

if TYPE_CHECKING:
    from zotune.engines.offload import Offload


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
            for target, (lr, weight_decay) in zip(self._perturber.targets(), rates, strict=True):
                self._update(target, key, probes, lr, weight_decay, wait)
        self._direction.observe(self._perturber.targets(), probes)

    def _update(
        self, target: Target, key: Key, probes: list[Probe], lr: float, weight_decay: float, wait: bool
    ) -> None:
        active = any(self._direction.active(target, probe.key) for probe in probes)
        change = self._rule.change(target, self._direction, probes, lr) if active else None
        banked = self._perturber.bank(target.name) is not None
        if banked and active and change is None:
            raise no_bank(self._method, target.name)
        if change is None and (active or lr * weight_decay):
            if not active:  # it rests: the method is not asked, so that what it keeps of the tensor rests too
                self._write(target, key, lambda block: decayed(block, lr, weight_decay))
                return
            along = self._rule.along(target, self._direction, probes, lr, weight_decay)
            self._write(target, key, lambda block: self._rule.update(block, probes, lr, weight_decay), along)
        elif change is not None and (wait or banked):
            self._perturber.pending[target.name] = (
                change if target.pending is None else add_up([(target.pending, 1.0), (change, 1.0)])
            )
        elif change is not None and (bool(change.u.any()) or lr * weight_decay):
            moved = replace(target, pending=change)
            self._write(moved, key, lambda block: decayed_sum(block, lr, weight_decay))

    def fold(self, key: Key) -> None:
        """Write the low-rank updates that are still pending into the weights (or banks); `key` is of the last step."""
        with torch.no_grad():
            for target in self._perturber.targets():
                # Adding zero would still turn -0.0 into 0.0.
                if target.pending is None or not bool(target.pending.u.any()):
                    continue
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
        dither = Key(key.seed, key.step, 0, Purpose.DITHER)

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
