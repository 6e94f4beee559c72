"""Orthonormal bases that are drawn for a window of steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from zotune import kernels
from zotune.direction import Target
from zotune.noise import Key, Purpose


def orthonormal(gaussian: Tensor) -> Tensor:
    """The orthonormal factor of `gaussian` (n, r), r <= n, on the CPU in float64: uniform over all such (Haar).

    The QR decomposition leaves signs open; here those of the triangular factor's diagonal are positive.
    """
    q, r = torch.linalg.qr(gaussian.to("cpu", torch.float64))
    found: Tensor = q * torch.where(r.diagonal() < 0, -1.0, 1.0).to(q.dtype)
    return found


@final
class Bases:
    """A few column-orthonormal matrices for each tensor, new in every window of `interval` steps.

    They are drawn from the window's number, so nothing need be stored; the present window's stay at hand.
    """

    def __init__(self, interval: int) -> None:
        self.interval = interval
        self._kept: dict[str, tuple[Key, list[Tensor]]] = {}

    def of(self, target: Target, key: Key, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Matrices of these shapes for the window of `key`, in the dtype and on the device of the weights.

        Rounded to the weights' dtype before use, so that the forward and the update see the same columns.
        """
        window = replace(key, step=key.step // self.interval, query=0, purpose=Purpose.BASIS)
        found = self._kept.get(target.name)
        if found is None or found[0] != window:
            found = self._kept[target.name] = (window, [q.to(target.data) for q in _drawn(target, window, shapes)])
        return found[1]


def _drawn(target: Target, window: Key, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
    found, start, cpu = [], 0, torch.device("cpu")
    for n, r in shapes:
        gaussian = kernels.noise("gaussian", window, target.name, start, start + n * r, cpu, target.fast)
        found.append(orthonormal(gaussian.view(n, r)))
        start += n * r
    return found
