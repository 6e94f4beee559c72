"""Who evaluates what in a step, and how the losses of all processes become those that one process would have.

A step is a list of cells: some points of the step at one micro-batch. A cell is evaluated whole, by one process, in the
forwards that a single process would use; its losses are sent to all, and every process adds them in the same order. So
the number of processes changes neither a loss nor a weight by a bit.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, final, get_args

from torch import Tensor

from zotune.distributed.agreement import REBUILD, digest, refuse_different
from zotune.distributed.group import Group
from zotune.distributed.in_group import InGroup
from zotune.distributed.sharing import Lanes, Losses
from zotune.distributed.work import Work
from zotune.errors import ConfigError, NonFiniteLoss
from zotune.estimate import Point
from zotune.stacked import batch_rows

Mode = Literal["data", "probes", "signs", "data+probes", "data+signs", "shard", "data+shard"]

_HEAD = struct.Struct("<QII6s")  # step, cells of the step, fingerprint of its first batch, digest of the weights
_COUNT = struct.Struct("<I")  # losses at a point


@final
class Parallel(InGroup):
    """How the work of a step is dealt out among the processes of a group.

    Args:
        mode: "data": each micro-batch to one process. "probes": each probe (its points that ride in one forward) to
            one. "signs": each point to one; points are then evaluated one at a time in every number of processes,
            since a forward for both sides rounds otherwise. "data+probes", "data+signs": both products. "shard": every
            process evaluates everything, since a sharded model (`fully_shard`) takes all of them for each forward; the
            losses that count are those of process 0. "data+shard": each micro-batch of a sharded model to one process;
            the processes run their forwards side by side, and one whose turn is left over runs one that does not count.
        group: the processes; None is torch's default group.
        check_every: after the first and every so many steps, a slice of the weights is compared.

    Every process passes every micro-batch of the step to `ZerothOrder.estimate`, in the same order; those of others are
    not evaluated. What fails in an estimate is raised by `step`, in all processes. Raises ConfigError for a mode that
    is none, UserError where no process group is initialised.
    """

    def __init__(self, mode: Mode = "data", group: Group | None = None, check_every: int = 100) -> None:
        if mode not in get_args(Mode):
            raise ConfigError(f"parallel is {mode!r}. Remedy: one of {', '.join(get_args(Mode))}.")
        super().__init__(group, check_every)
        self.mode: str = mode
        self._by_point = "signs" in mode
        self._sharded, self.in_step = "shard" in mode, mode == "data+shard"
        self._whole = mode in ("data", "data+shard")  # micro-batches are dealt out whole
        self._fingerprint: int | None = None  # None once the processes have shown that they were given the same batch
        self._first = True

    def forget(self) -> None:
        """Drop what was collected of a step."""
        super().forget()
        self._cells: list[tuple[int, list[int], float]] = []  # owner, points, weight
        self._own: list[Sequence[float]] = []  # the losses at each point of the own cells, one behind the other

    # --- before and during the first phase ----------------------------------------------------------------------

    def lanes(self, asked: Lanes) -> Lanes:
        """What `lanes` is with this mode. Raises ConfigError for "on" where points are evaluated one at a time."""
        if self._by_point and asked == "on":
            raise ConfigError("signs are evaluated one at a time, so lanes cannot be on. Remedy: lanes auto or off.")
        return "off" if self._by_point else asked

    def check_work(self, units: int, points: int, lanes: int) -> None:
        """Raises ConfigError when a step of so many micro-batches and points leaves a process without work."""
        Work(self.group.size, self.mode).forwards(units, points, lanes)

    def elsewhere(self, rows: int, points: int) -> bool:
        """Whether the next micro-batch is evaluated by others alone; it then counts as passed, with `rows` examples.

        The first one of a step is seen by all processes: directions may read it.
        """
        if not self._whole or not self.units or self._owner(self.units) == self.group.rank:
            return False
        self._cells.append((self._owner(self.units), list(range(points)), 1.0))
        self.examples += rows
        self.units += 1
        return True

    def owes_forward(self) -> bool:
        """Whether the others are at a micro-batch of the step and none was left for this process.

        Never process 0; the first micro-batch was seen by all, and this process did not evaluate it.
        """
        over = self.units % self.group.size
        return self.in_step and over != 0 and self.group.rank >= over and not self._broken_off()

    def _broken_off(self) -> bool:
        """Whether a forward failed on its way: the others may wait in it. Losses come at its end, finite or not."""
        return self._failed is not None and not isinstance(self._failed, NonFiniteLoss)

    def deal(self, points: Sequence[Point], batch: Any, weight: float, centre: bool, lanes: int) -> list[Point]:
        """The points at which this process evaluates the next micro-batch; `keep` takes their losses, if any.

        `centre`: the losses at the points of scale 0 are known to every process. `lanes`: points in one forward.
        """
        if not self.units and self._first:
            self._fingerprint = _fingerprint(batch)
        if self.mode == "shard":
            self._cells.append((0, list(range(len(points))), weight))
            self._count(batch)
            return [] if self._broken_off() else list(points)
        known = [i for i, point in enumerate(points) if centre and not point.scale]
        own: list[int] = []
        for cell in self._groups([i for i in range(len(points)) if i not in known], known, lanes):
            owner = self._owner(self.units if self._whole else len(self._cells))
            self._cells.append((owner, cell, weight))
            own += cell if owner == self.group.rank else []
        self._count(batch)
        if self._sharded and self._broken_off():
            return []
        return [points[i] for i in own]

    def _count(self, batch: Any) -> None:
        self.units += 1
        self.examples += batch_rows(batch) or 0

    def keep(self, losses: Sequence[Sequence[float]]) -> None:
        """The losses at the points that `deal` gave, (points, examples)."""
        if self.mode != "shard" or self.group.rank == 0:
            self._own += losses

    def _owner(self, number: int) -> int:
        return number % self.group.size

    def _groups(self, points: Sequence[int], known: Sequence[int], lanes: int) -> list[list[int]]:
        """The points of each cell of one micro-batch, in the forwards of a single process."""
        size = len(points) if self._whole else 1 if self._by_point else lanes
        groups = [[*points[i : i + size]] for i in range(0, len(points), size)] or [[]]
        return [[*known, *groups[0]], *groups[1:]]

    # --- second phase --------------------------------------------------------------------------------------------

    def gather(self, step: int, weights: Callable[[], Mapping[str, Tensor]]) -> Losses:
        """The losses of all processes, as a single one would have collected them. Ends the step's collecting.

        `weights()` are the tensors that must be equal on all processes. Raises what failed anywhere, and RunError when
        the processes are at different steps, were given other batches, or have other weights.
        """
        due = step == 1 or (step > 0 and step % self.check_every == 0)
        mark = b"\0" * 6
        if due and self._failed is None:
            mark = digest(weights(), self._checks)
        self._checks += due
        cells, failed, own = self._cells, self._failed or self.group.stop, self._own
        head = _HEAD.pack(step, len(cells), self._fingerprint or 0, mark)
        alone = self._failed if self._sharded and self._broken_off() else None
        self.forget()
        if alone is not None:
            self.group.exchange_soon(alone)
        told = self.group.exchange(head + b"".join(map(_packed, own)), failed, usual=True)
        heads = [_HEAD.unpack_from(message) for message in told]
        refuse_different([h[:2] for h in heads], "step and number of micro-batches", "call estimate and step alike")
        refuse_different(
            [h[2] for h in heads],
            "the first micro-batch",
            "pass every micro-batch of the step to every process; zotune deals them out",
        )
        refuse_different(
            [h[3] for h in heads],
            f"the weights after {step} steps",
            REBUILD,
        )
        self._first, self._fingerprint = False, None
        return _joined(cells, [message[_HEAD.size :] for message in told])


def _packed(losses: Sequence[float]) -> bytes:
    return _COUNT.pack(len(losses)) + struct.pack(f"<{len(losses)}d", *losses)


def _joined(cells: Sequence[tuple[int, list[int], float]], told: Sequence[bytes]) -> Losses:
    """The losses of all cells in the order of the cells, whoever evaluated them."""
    read = [0] * len(told)
    found: Losses = [[] for _ in range(1 + max((max(points) for _, points, _ in cells), default=-1))]
    for owner, points, weight in cells:
        for point in points:
            (count,) = _COUNT.unpack_from(told[owner], read[owner])
            losses = struct.unpack_from(f"<{count}d", told[owner], read[owner] + _COUNT.size)
            read[owner] += _COUNT.size + 8 * count
            found[point].extend((loss, weight) for loss in losses)
    return found


def _fingerprint(batch: Any) -> int:
    """CRC-32 of a batch's tensors; 0 where there are none to see, as in a closure."""
    found = 0
    for name in sorted(batch) if isinstance(batch, Mapping) else ():
        if isinstance(batch[name], Tensor):
            found = zlib.crc32(batch[name].detach().cpu().contiguous().view(-1).numpy().tobytes(), found)
    return found
