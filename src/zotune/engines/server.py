"""A server of a model that holds adapters beside one base: what a run needs of it, whichever it is (`served.py`)."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from zotune.distributed.pool import Recorder
from zotune.errors import RunError
from zotune.estimate import Point
from zotune.records import Record, encode

if TYPE_CHECKING:
    from zotune.journal import Journal


@final
@dataclass(frozen=True)
class Order:
    """What a server is started with.

    model, dtype, trust_remote_code: what it loads. header: of the run, as JSON. bank_rank: the most columns of a bank;
    rank: of an adapter. layers: the names of those that get one. slots: points that are scored together. length: tokens
    of the longest sequence that is read. reply: tokens that an answer to a request may have.
    """

    model: str
    dtype: str
    trust_remote_code: bool
    header: bytes
    bank_rank: int
    rank: int
    layers: tuple[str, ...]
    slots: int
    length: int
    reply: int


@final
@dataclass(frozen=True)
class Question:
    """read: token ids. follow: ids of which each may come next. inner: whether the tokens read are scored too."""

    read: tuple[int, ...]
    follow: tuple[int, ...]
    inner: bool


@final
@dataclass(frozen=True)
class Answer:
    """Log-probabilities. inner: of every token read but the first, where asked; follow: of each that may come next."""

    inner: Sequence[float]
    follow: Mapping[int, float]


class Server(ABC):
    """An engine that holds a base and, beside it, adapters that its workers make. Abstract: all that begins with `_`.

    One call at a time: a request from another thread waits for the forward that runs, and a step for the request.
    """

    def __init__(self) -> None:
        self.told: list[bytes] = []  # records of the run
        self._known = 0  # of them, those that the workers have replayed
        self._started = False
        self._lock = threading.RLock()

    @abstractmethod
    def _start(self, order: Order) -> None:
        """Load the model; every worker makes a Mirror. Raises CoverageError for layers that get no adapter."""

    @abstractmethod
    def _follow(self, records: bytes) -> None:
        """All workers replay."""

    @abstractmethod
    def _place(self, step: int | None, adapters: Sequence[tuple[int, int, float]]) -> None:
        """Write adapters (slot from 1, query, scale) of the step that comes next.

        Raises RunError where a worker is at another one than `step`.
        """

    @abstractmethod
    def _answer(self, questions: Sequence[Question], slots: Sequence[int]) -> list[Answer]:
        """Of each question, read with the adapter in its slot; all in one go."""

    @abstractmethod
    def says(self) -> str:
        """What it is, in words, once it has started."""

    @abstractmethod
    def close(self) -> None:
        """End it. A server that never started closes too."""

    def start(self, order: Order) -> None:
        """Load the model. Raises UserError (a subclass) where that fails."""
        with self._lock:
            if self._started:
                raise RunError("this server serves a run already. Remedy: a server for each run.")
            self._start(order)
            self._started, self._order = True, order

    def tell(self, record: Record) -> None:
        """What a run without a journal has recorded: for `ZerothOrder.record`."""
        self.told.append(encode(record))

    def recording(self, journal: Journal) -> Recorder:
        """A journal for a run's loop, of which the workers hear too."""
        self.told = [encode(record) for record in journal.records]
        return Recorder(journal, self.told)

    def score(self, step: int, points: Sequence[Point], questions: Sequence[Question]) -> list[list[Answer]]:
        """For each point of `step`, the answers to all questions."""
        count, size, found = len(questions), self._order.slots, list[list[Answer]]()
        with self._lock:
            self._catch_up()
            for start in range(0, len(points), size):
                group = points[start : start + size]
                self._place(step, [(slot, p.key.query, p.scale) for slot, p in enumerate(group, start=1)])
                slots = [slot for slot in range(1, len(group) + 1) for _ in questions]
                flat = self._answer(list(questions) * len(group), slots)
                found += [flat[at * count : (at + 1) * count] for at in range(len(group))]
        return found

    @contextmanager
    def serving(self) -> Iterator[int]:
        """Within the context nothing is trained; yields the slot that holds what was learned so far.

        Raises RunError before the run has started the server.
        """
        with self._lock:
            if not self._started:
                raise RunError("no run has started this server yet. Remedy: pass it to zotune.train.train.")
            self._catch_up()
            self._place(None, [(self._order.slots + 1, 0, 0.0)])
            yield self._order.slots + 1

    def _catch_up(self) -> None:
        """Tell the workers what they do not know yet."""
        if self._known < len(self.told):
            self._follow(b"".join(self.told[self._known :]))
            self._known = len(self.told)
