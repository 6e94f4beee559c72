"""The low-rank direction of LoZO (arXiv 2410.07698), which other methods use too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, final

import torch
from torch import Tensor

from zotune.direction import Factors, Target, Together
from zotune.errors import ConfigError
from zotune.factored import Factored, add_up_all, side_by_side
from zotune.noise import Key, Law, Purpose


@final
class LowRank(Factored):
    """`Z = U V'`: U fresh for every probe, V kept for `interval` steps; vectors get a dense z of the same law.

    Nothing is stored from step to step: V is drawn from the window's number, `step // interval`. With
    `normalize="rms"` Z is divided by sqrt(rank), so that its entries have variance 1 whatever the rank. All queries of
    a step share V, unless `own` gives each query its own. V of the latest `bases` windows stays at hand.
    """

    of_matrices = True
    may_wait = True
    in_parts = True

    def __init__(
        self,
        rank: int,
        interval: int,
        law: Law = "gaussian",
        normalize: Literal["none", "rms"] = "rms",
        own: bool = False,
        bases: int = 1,
    ) -> None:
        for name, value in (("rank", rank), ("interval", interval)):
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}. Remedy: rank 2, interval 50 are usual.")
        self.rank, self.interval, self.law, self.own = rank, interval, law, own
        self._scale = rank**-0.5 if normalize == "rms" else 1.0
        self._u, self._v = Together(law), Together(law, bases)

    def prepare(self, targets: Sequence[Target]) -> None:
        for target in targets:
            device, dtype = target.data.device, target.data.dtype
            if target.data.dim() < 2:
                self._u.add(target.name, target.data.numel(), device)
                continue
            # Rounded to the weights' dtype before use, so that the forward and the update see the same factors.
            rows, columns = target.matrix_shape
            self._u.add(target.name, rows * self.rank, device, dtype, self.rank)
            self._v.add(target.name, columns * self.rank, device, dtype, self.rank)

    def factors(self, target: Target, key: Key) -> Factors | None:
        return None if target.data.dim() < 2 else self._factors(target, key)

    def _factors(self, target: Target, key: Key) -> Factors:
        query = key.query if self.own else 0
        window = replace(key, step=key.step // self.interval, query=query, purpose=Purpose.BASIS)
        u, v = self._u.draw(key, target.name), self._v.draw(window, target.name)
        return Factors(u, v, self._scale, None if self.own else window.step)

    def plain(self, target: Target, key: Key, start: int, stop: int) -> Tensor:
        return self._u.draw(key, target.name)[start:stop]

    def is_joint(self, target: Target) -> bool:
        return target.data.dim() < 2

    def joint(self, targets: Sequence[Target], key: Key) -> Tensor:
        return torch.cat([self._u.draw(key, target.name) for target in targets])

    def window(self) -> int:
        return 1 if self.own else self.interval

    def combined(self, target: Target, terms: Sequence[tuple[Key, float]]) -> Factors | None:
        if not self.own:
            return super().combined(target, terms)
        found = [(self.factors(target, key), scale) for key, scale in terms]
        return side_by_side([(factors, scale) for factors, scale in found if factors is not None]) if found else None

    def combined_all(
        self, targets: Sequence[Target], terms: Sequence[Sequence[tuple[Key, float]]]
    ) -> list[Factors | None]:
        matrices = [i for i, target in enumerate(targets) if target.data.dim() >= 2 and terms[i]]
        if self.own or len(matrices) < 2:
            return super().combined_all(targets, terms)
        sums = [[(self._factors(targets[i], key), scale) for key, scale in terms[i]] for i in matrices]
        found: list[Factors | None] = [None] * len(targets)
        for i, factors in zip(matrices, add_up_all(sums), strict=True):
            found[i] = factors
        return found

    def state_elements(self, targets: Sequence[Target]) -> int:
        return self._u.elements + self._v.elements
