"""A pool of workers that come and go: the driver takes the steps, the workers evaluate, scalars cross.

Every worker holds the model. The driver hands out the cells of a step (some points at one micro-batch), adds the losses
in the order of the cells, records the step and applies it; each worker is sent the record with its next task. So one
that joins late is sent all records, and replays them. A cell of a worker that is gone is given to another. The driver
does what a single process does but for the forwards of the steps, and ends with the same journal and the same weights,
as long as all machines compute the same losses; otherwise with those that the journal tells.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from torch import Tensor

from zotune.distributed.agreement import fingerprints
from zotune.distributed.sharing import Losses, Sharing
from zotune.distributed.worker import content, losses_of, refuse_readers, task_of
from zotune.errors import RunError, UserError
from zotune.estimate import Point
from zotune.records import Record, encode

if TYPE_CHECKING:
    from zotune.journal import Journal
    from zotune.session import Session

# Workers that may be lost, for each wanted one, without a single answer in between.
_PATIENCE = 3
# A cell is given to a second worker when the first has been at it for so many times as long as cells take, and so many
# seconds at least.
_SLOW, _LEAST = 5.0, 60.0
_LOOK = 5.0  # seconds between two looks for such cells


class Crew(ABC):
    """Where workers run. Each has one call at a time."""

    @abstractmethod
    def hire(self, number: int) -> None:
        """Begin a worker under that number, and its `Worker.join`. It may have to wait for a machine."""

    @abstractmethod
    def evaluate(self, number: int, records: bytes, task: bytes) -> None:
        """Begin `Worker.evaluate`."""

    @abstractmethod
    def wait(self, seconds: float) -> tuple[int, bytes | None] | None:
        """The next answer: the worker's number, and None for it when it is gone; None when none comes in time."""

    @abstractmethod
    def dismiss(self, number: int) -> None:
        """End a worker."""

    @abstractmethod
    def close(self) -> None:
        """End all."""


@final
@dataclass
class _Member:
    """What the driver knows of a worker."""

    known: int = 0  # records that it was sent
    joined: bool = False
    cell: tuple[int, int] | None = None  # the step and number of the cell it works on
    since: float = 0.0  # when it was given it


@final
@dataclass
class Traffic:
    """Bytes of messages, Ray's own around them not counted."""

    tasks: int = 0  # in tasks, and the records of the step before with them
    catching_up: int = 0  # in records of earlier steps, for workers that join
    answers: int = 0


@final
class Pool(Sharing):
    """Shares each step among the workers of a crew, of which `wanted` are kept.

    say: told who joins and who is lost. Raises RunError when workers are lost again and again, or none can join.
    """

    mode = "pool"

    def __init__(self, crew: Crew, wanted: int, say: Callable[[str], None]) -> None:
        self._crew, self._say, self._wanted = crew, say, wanted
        self._members: dict[int, _Member] = {}
        self._next, self._losses_in_row, self._steps = 0, 0, 0
        self._told: list[bytes] = []
        self._session: Session | None = None
        self.traffic, self.joined, self.lost = Traffic(), 0, 0
        self._usual = 0.0  # the longest that a cell took so far, in seconds
        for _ in range(wanted):
            self._hire()
        self.forget()

    def forget(self) -> None:
        """Drop what was collected of a step."""
        self.examples = self.units = 0

    # --- what the run tells -----------------------------------------------------------------------------------------

    def recording(self, session: Session, journal: Journal) -> Recorder:
        """A journal for the run's loop, of which the workers hear too."""
        refuse_readers(session.optimizer.direction.reads_inputs, session.config.method)
        self._session = session
        self._run = fingerprints(session.header(scope_sha256=journal.header["scope_sha256"]))
        self._told = [encode(record) for record in journal.records]
        return Recorder(journal, self._told)

    # --- a step -----------------------------------------------------------------------------------------------------

    def elsewhere(self, rows: int, points: int) -> bool:
        """Every micro-batch is."""
        self.units += 1
        self.examples += rows
        self._points = points
        return True

    def deal(self, points: Sequence[Point], batch: Any, weight: float, centre: bool, lanes: int) -> list[Point]:
        """Nothing is evaluated here."""
        return []

    def keep(self, losses: Sequence[Sequence[float]]) -> None:
        """Nothing was evaluated here."""

    def gather(self, step: int, weights: Callable[[], Mapping[str, Tensor]]) -> Losses:
        """The losses of the step, whoever evaluated them. Raises what fails in a worker."""
        assert self._session is not None
        evaluator = self._session.optimizer.evaluator
        size = evaluator.max_lanes if evaluator.mode == "lanes" else 1
        cells = [
            (unit, first, min(first + size, self._points))
            for unit in range(self.units)
            for first in range(0, self._points, size)
        ]
        points = self._points
        self.forget()
        self._steps += 1
        answers = self._worked(step, cells)
        found: Losses = [[] for _ in range(points)]
        for number, (_, first, _) in enumerate(cells):
            for place, losses in enumerate(losses_of(answers[number]), first):
                found[place].extend((loss, 1.0) for loss in losses)
        return found

    def _worked(self, step: int, cells: Sequence[tuple[int, int, int]]) -> dict[int, bytes]:
        """The answer to each cell."""
        waiting, answers = deque(range(len(cells))), dict[int, bytes]()
        while len(answers) < len(cells):
            for number, member in self._members.items():
                if waiting and member.joined and member.cell is None:
                    member.cell, member.since = (step, waiting.popleft()), time.monotonic()
                    self._send(number, member, task_of(step, *cells[member.cell[1]]))
            heard = self._crew.wait(_LOOK)
            if heard is None:
                waiting.extend(self._overdue(step, waiting, answers))
                continue
            number, answer = heard
            member = self._members[number]
            # A cell of an earlier step was left behind by an error that the step was left out for.
            own = member.cell[1] if member.cell is not None and member.cell[0] == step else None
            member.cell = None
            if answer is None:
                waiting.extendleft([] if own is None or own in answers or own in waiting else [own])
                self._replace(number)
            elif not member.joined:
                self._welcome(number, member, answer)
            elif own is not None:
                self._losses_in_row = 0
                self._usual = max(self._usual, time.monotonic() - member.since)
                self.traffic.answers += len(answer)
                if own in waiting:  # the worker that was slow has answered before another took its part
                    waiting.remove(own)
                answers.setdefault(own, content(answer, f"worker {number}"))
        return answers

    def _overdue(self, step: int, waiting: Sequence[int], answers: Mapping[int, bytes]) -> list[int]:
        """Cells whose one worker has been at them for much longer than usual, while another has nothing to do."""
        at_work = [m for m in self._members.values() if m.cell is not None and m.cell[0] == step]
        idle = sum(m.joined and m.cell is None for m in self._members.values())
        late = time.monotonic() - max(_LEAST, _SLOW * self._usual)
        found: list[int] = []
        for member in at_work:
            assert member.cell is not None
            cell = member.cell[1]
            alone = sum(other.cell == member.cell for other in at_work) == 1
            if member.since < late and alone and cell not in answers and cell not in waiting and len(found) < idle:
                found.append(cell)
        if found:
            self._say(f"{len(found)} parts of step {step} take long; other workers take them too.")
        return found

    def _send(self, number: int, member: _Member, task: bytes) -> None:
        records = self._told[member.known :]
        late = b"".join(records[:-1])
        self.traffic.catching_up += len(late)
        self.traffic.tasks += len(task) + len(b"".join(records)) - len(late)
        member.known = len(self._told)
        self._crew.evaluate(number, b"".join(records), task)

    # --- coming and going -------------------------------------------------------------------------------------------

    def _hire(self) -> None:
        self._members[self._next] = _Member()
        self._crew.hire(self._next)
        self._next += 1

    def _welcome(self, number: int, member: _Member, answer: bytes) -> None:
        """Let a worker take part, if it has the run's model, rows and versions."""
        try:
            told = json.loads(content(answer, f"worker {number}"))
            other = [key for key, value in self._run.items() if told["run"].get(key) != value]
            if other:
                raise RunError(
                    f"worker {number} on {told['host']} differs from the driver in {other[0]} of the run. Remedy: the "
                    "same files and versions on all machines."
                )
        except UserError as error:
            del self._members[number]
            self._crew.dismiss(number)
            if not self._members:
                raise
            self._say(f"{error} It takes no part.")
            return
        member.joined, steps = True, len(self._told)
        self.joined += 1
        late = f" after {steps} records, which it replays" if steps else ""
        self._say(f"worker {number} joined (process {told['pid']} on {told['host']}){late}.")

    def _replace(self, number: int) -> None:
        del self._members[number]
        self.lost, self._losses_in_row = self.lost + 1, self._losses_in_row + 1
        if self._losses_in_row > _PATIENCE * self._wanted:
            raise RunError(
                f"{self._losses_in_row} workers were lost without an answer. Remedy: look at the logs of their "
                "machines (memory?); start the pool again with the same options to go on."
            )
        self._say(f"worker {number} is gone; another takes its part, and a new one is sought.")
        self._hire()

    def counted(self) -> dict[str, Any]:
        """Workers and bytes, for the run's result."""
        crossed = {"sent_bytes": self.traffic.tasks + self.traffic.catching_up, "received_bytes": self.traffic.answers}
        return {"workers_joined": self.joined, "workers_lost": self.lost, **crossed}

    def says(self) -> str:
        """What crossed, in words."""
        each, traffic = max(self._steps, 1), self.traffic
        return (
            f"{self.joined} workers took part, {self.lost} were lost. A step sent {traffic.tasks / each:.0f} bytes to "
            f"the workers and {traffic.answers / each:.0f} back; catching up took {traffic.catching_up} bytes in all."
        )


@final
class Recorder:
    """A journal whose records are kept for the workers too."""

    def __init__(self, journal: Journal, told: list[bytes]) -> None:
        self._journal, self._told = journal, told
        self.header, self.records = journal.header, journal.records

    @property
    def size(self) -> int:
        """Bytes of the journal."""
        return self._journal.size

    def append(self, record: Record) -> None:
        """Write, then tell."""
        self._journal.append(record)
        self._told.append(encode(record))
