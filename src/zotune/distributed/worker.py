"""A worker of a pool: it holds the model, replays what the driver records, and evaluates what it is asked to.

Messages are bytes. To a worker: records as the journal has them, and a task of four numbers. From a worker: losses, or
an error's name and text.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, final

from torch import Tensor

from zotune import errors
from zotune.distributed.agreement import fingerprints
from zotune.distributed.sharing import Losses, Sharing
from zotune.errors import ConfigError, RunError, UserError
from zotune.estimate import Point

_TASK = struct.Struct("<QIII")  # step, micro-batch of the step, first point, the one behind the last
_COUNT = struct.Struct("<I")  # losses at a point
_FINE, _FAILED = b"\0", b"\1"


@final
class Cell(Sharing):
    """Some points of a step at one micro-batch."""

    mode = "pool"

    def __init__(self, unit: int, examples: int, first: int, last: int) -> None:
        self.units, self.examples = unit, examples
        self._first, self._last = first, last
        self.losses: list[Sequence[float]] = []

    def deal(self, points: Sequence[Point], batch: Any, weight: float, centre: bool, lanes: int) -> list[Point]:
        """The cell's own points."""
        return list(points[self._first : self._last])

    def keep(self, losses: Sequence[Sequence[float]]) -> None:
        """Held for the answer."""
        self.losses = [*losses]

    def gather(self, step: int, weights: Callable[[], Mapping[str, Tensor]]) -> Losses:
        """Never: the driver takes the steps."""
        raise NotImplementedError


@final
class Worker:
    """What runs on a machine of the pool, `config` being the run's config.yaml. Nothing is written.

    trust_remote_code: as on the driver's command line.
    """

    def __init__(self, config: bytes, trust_remote_code: bool) -> None:
        self._config, self._trust = config, trust_remote_code

    def join(self) -> bytes:
        """Load the model and the rows. The answer holds host, process and what the run is, to be compared."""
        return answered(self._join)

    def evaluate(self, records: bytes, task: bytes) -> bytes:
        """Replay `records`, which follow those of the calls before, then evaluate. The answer holds the losses."""
        return answered(lambda: self._evaluate(records, task))

    def _join(self) -> bytes:
        from zotune.resolve import resolve
        from zotune.session import Session
        from zotune.yaml12 import parse_mapping

        values, _ = parse_mapping(self._config, "the run's config")
        self.session = Session(resolve({**values, "trust_remote_code": self._trust})).begin()
        refuse_readers(self.session.optimizer.direction.reads_inputs, self.session.config.method)
        told = {"host": socket.gethostname(), "pid": os.getpid(), "run": fingerprints(self.session.header())}
        return json.dumps(told).encode()

    def _evaluate(self, records: bytes, task: bytes) -> bytes:
        from zotune.data.batching import units_of_step

        self._replay(records)
        session, optimizer = self.session, self.session.optimizer
        step, unit, first, last = _TASK.unpack(task)
        if step != optimizer.steps:
            raise RunError(f"asked for step {step} after {optimizer.steps} steps. Remedy: start the pool again.")
        units = units_of_step(len(session.units), session.units_per_step, session.config.seed, step)
        cell = Cell(unit, sum(len(session.units[number]) for number in units[:unit]), first, last)
        number = units[unit]
        batch = session.batch(session.units[number]) | {"step": step}
        optimizer.parallel = cell
        within = session.reuse.within(session.objective, batch, (number, 0))
        optimizer.estimate(session.objective, batch, within=within)
        return b"".join(_COUNT.pack(len(row)) + struct.pack(f"<{len(row)}d", *row) for row in cell.losses)

    def _replay(self, records: bytes) -> None:
        from zotune.rebuild import current_sha256
        from zotune.records import HashRecord, parse_records

        for record in parse_records(Path("what the driver sent"), records, 0)[0]:
            if not isinstance(record, HashRecord):
                self.session.replay(record)
            elif record.sha256 != current_sha256(self.session.optimizer):  # asked for always: a hash marks a fold
                raise RunError(
                    f"the weights after {record.step} steps are not those of the driver. Remedy: the same versions of "
                    "zotune and torch on all machines."
                )


def refuse_readers(reads_inputs: bool, method: str) -> None:
    """Raises ConfigError for a method that a worker could not replay."""
    if reads_inputs:
        raise ConfigError(
            f"{method} reads the layers' inputs, so records alone cannot tell a worker its directions. Remedy: another "
            "method, or torchrun."
        )


def task_of(step: int, unit: int, first: int, last: int) -> bytes:
    """The bytes of a task: the points `first` to `last - 1` of a step at its micro-batch number `unit`."""
    return _TASK.pack(step, unit, first, last)


def losses_of(answer: bytes) -> list[list[float]]:
    """The losses at each point of a task, from the answer to it."""
    found, at = [], 0
    while at < len(answer):
        (count,) = _COUNT.unpack_from(answer, at)
        found.append(list(struct.unpack_from(f"<{count}d", answer, at + _COUNT.size)))
        at += _COUNT.size + 8 * count
    return found


def content(answer: bytes, who: str) -> bytes:
    """What a worker answers; raises its error where it failed, of the same class where that is one of zotune's."""
    if answer[:1] == _FINE:
        return answer[1:]
    told = json.loads(answer[1:])
    kind, text = getattr(errors, str(told["kind"]), None), str(told["text"])
    if isinstance(kind, type) and issubclass(kind, UserError):
        raise kind(f"{who}: {text}")
    said = (text.strip() or str(told["kind"])).splitlines()[0].rstrip(".")
    raise RunError(f"{who} failed: {told['kind']}: {said}. Remedy: its machine's logs say more.")


def answered(what: Callable[[], bytes]) -> bytes:
    """What `what` gives, or what went wrong, for `content` to read."""
    try:
        return _FINE + what()
    except Exception as error:  # whatever it is, the driver says it
        return _FAILED + json.dumps({"kind": type(error).__name__, "text": str(error)[:4000]}).encode()
