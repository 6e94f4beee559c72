"""Processes that each pass micro-batches of their own, as loops with a distributed sampler do (transformers' Trainer).

Each process evaluates what it was given, at every point of the step; the losses of all count, those of the first
micro-batch of every process first, then those of the second, and so on. So two processes with a micro-batch each end as
one with both of them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

from torch import Tensor

from zotune.distributed.agreement import REBUILD, digest, refuse_different
from zotune.distributed.group import Group
from zotune.distributed.in_group import InGroup
from zotune.distributed.sharing import Losses
from zotune.estimate import Point
from zotune.stacked import batch_rows

_HEAD = struct.Struct("<Q6sI")  # step, digest of the weights, micro-batches
_UNIT = struct.Struct("<dII")  # weight of a micro-batch, points, losses at each


@final
class OwnBatches(InGroup):
    """Every process of a group gives `estimate` its own micro-batches; `step` adds the losses of all.

    Args:
        group: the processes; None is torch's default group.
        check_every: after the first and every so many steps, a slice of the weights is compared.

    What fails in an estimate is raised by `step`, in all processes. Raises UserError where no process group is
    initialised.
    """

    mode = "own batches"
    own = True

    def __init__(self, group: Group | None = None, check_every: int = 100) -> None:
        super().__init__(group, check_every)

    def forget(self) -> None:
        """Drop what was collected of a step."""
        super().forget()
        self._weights: list[float] = []
        self._losses: list[Sequence[Sequence[float]]] = []

    def deal(self, points: Sequence[Point], batch: Any, weight: float, centre: bool, lanes: int) -> list[Point]:
        """All of them."""
        self.units += 1
        self.examples += batch_rows(batch) or 0
        self._weights.append(weight)
        return list(points)

    def keep(self, losses: Sequence[Sequence[float]]) -> None:
        """The losses of the micro-batch that was dealt last."""
        self._losses.append(losses)

    def gather(self, step: int, weights: Callable[[], Mapping[str, Tensor]]) -> Losses:
        """The losses of all processes' micro-batches. Raises what failed anywhere, and RunError when the processes are
        at different steps or have other weights.
        """
        due = step == 1 or (step > 0 and step % self.check_every == 0)
        mark = digest(weights(), self._checks) if due and self._failed is None else b"\0" * 6
        self._checks += due
        failed, units = self._failed or self.group.stop, list(zip(self._weights, self._losses, strict=False))
        self.forget()
        message = _HEAD.pack(step, mark, len(units)) + b"".join(_packed(weight, losses) for weight, losses in units)
        told = self.group.exchange(message, failed, usual=True)
        heads = [_HEAD.unpack_from(each) for each in told]
        refuse_different([head[0] for head in heads], "step", "call estimate and step alike")
        refuse_different([head[1] for head in heads], f"the weights after {step} steps", REBUILD)
        return _joined([_unpacked(each, head[2]) for each, head in zip(told, heads, strict=True)])


Unit = tuple[float, list[tuple[float, ...]]]  # a micro-batch: its weight, and the losses at each point


def _packed(weight: float, losses: Sequence[Sequence[float]]) -> bytes:
    values = [loss for row in losses for loss in row]
    return _UNIT.pack(weight, len(losses), len(losses[0])) + struct.pack(f"<{len(values)}d", *values)


def _unpacked(message: bytes, units: int) -> list[Unit]:
    found, at = [], _HEAD.size
    for _ in range(units):
        weight, points, each = _UNIT.unpack_from(message, at)
        at += _UNIT.size
        rows = [struct.unpack_from(f"<{each}d", message, at + 8 * each * point) for point in range(points)]
        at += 8 * each * points
        found.append((weight, rows))
    return found


def _joined(processes: Sequence[Sequence[Unit]]) -> Losses:
    found: Losses = []
    for number in range(max(map(len, processes))):
        for units in processes:
            if number < len(units):
                weight, rows = units[number]
                found = found or [[] for _ in rows]
                for seen, row in zip(found, rows, strict=True):
                    seen.extend((loss, weight) for loss in row)
    return found
