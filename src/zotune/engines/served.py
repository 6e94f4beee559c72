"""Steps whose losses come from a server of the model, such as vLLM, in place of the model's own forward passes.

The base is read-only (`--scope bank`), so what is trained is an adapter of low rank, and a server of models holds many
of those beside one base: a slot for each point of a step, and one for what was learned so far, which answers requests
in between. The workers of the server make the adapters themselves (`mirror.py`): seeds, records and scalars cross.
The batch is scored once for all points; the objective makes losses of the log-probabilities.
"""

from __future__ import annotations

import json
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor

from zotune.config import TrainConfig, flag
from zotune.distributed.pool import Recorder
from zotune.engines.mirror import columns, layer_of
from zotune.errors import ConfigError, RunError
from zotune.estimate import Point
from zotune.objective.base import Batch, Objective, to_device
from zotune.objective.sequences import mean_scores, sequences
from zotune.perturb import Evaluator, Perturber, disagreement
from zotune.records import Record, encode
from zotune.scorer import Scorer, Within, nothing

if TYPE_CHECKING:
    from zotune.journal import Journal
    from zotune.session import Session

# Points of a step that are scored together at most; each has a slot of its own.
_MOST_SLOTS = 16
# How much larger than the run's radius that of the second comparison is: there nothing hides in rounding.
_MAGNIFY = 32.0
# Options of a run that a served one cannot have, and why.
_REFUSED = {
    "quantize": "the server would have to hold the same packed weights",
    "offload": "the server holds the whole model",
    "device_map": "the server holds the whole model",
    "blocks": "the server perturbs the whole scope in each step",
    "parallel": "the server is one process's",
}


@final
@dataclass(frozen=True)
class Order:
    """What a server is started with.

    model, dtype, trust_remote_code: what it loads. header: of the run, as JSON. bank_rank: the most columns of a bank;
    rank: of an adapter. layers: the names of those that get one. slots: points that are scored together. length: tokens
    of the longest sequence that is scored. reply: tokens that an answer to a request may have.
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
    def _log_probabilities(self, tokens: Sequence[Sequence[int]], slots: Sequence[int]) -> list[list[float]]:
        """Of every token but the first of each sequence, read with the adapter in its slot."""

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

    def score(self, step: int, points: Sequence[Point], tokens: Sequence[Sequence[int]]) -> list[list[list[float]]]:
        """For each point of `step`, the log-probabilities of every token but the first of each sequence."""
        count, size, found = len(tokens), self._order.slots, list[list[list[float]]]()
        with self._lock:
            self._catch_up()
            for start in range(0, len(points), size):
                group = points[start : start + size]
                self._place(step, [(slot, p.key.query, p.scale) for slot, p in enumerate(group, start=1)])
                slots = [slot for slot in range(1, len(group) + 1) for _ in tokens]
                flat = self._log_probabilities(list(tokens) * len(group), slots)
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


@final
class Served(Scorer):
    """The losses of a run's steps, from a server."""

    mode = "lanes"

    def __init__(self, server: Server, objective: Objective, perturber: Perturber) -> None:
        self._server, self._objective, self._perturber = server, objective, perturber
        self.max_lanes = _MOST_SLOTS

    def losses(self, objective: Any, batch: Batch, points: Sequence[Point], within: Within = nothing) -> Tensor:
        asked = sequences(batch)
        # Candidates that stand for ones that a row lacks are the same sequence again.
        place = {tokens: number for number, tokens in enumerate(dict.fromkeys(each.tokens for each in asked))}
        losses = []
        for found in self._server.score(points[0].key.step, points, list(place)):
            scored = [[found[place[each.tokens]][at - 1] for at in each.places] for each in asked]
            losses.append(self._objective.from_scores(mean_scores(batch, scored), to_device(batch, "cpu")))
        self.forwards += len(points)
        return torch.stack(losses)

    def decide(self, objective: Any, batch: Batch, points: Sequence[Point], within: Within = nothing) -> None:
        """Show that the server gives the model's own losses, or raise RunError: four forwards of the model.

        Both at the run's radius and at a much larger one, where what is served wrongly could not hide in rounding.
        """
        alone = Evaluator(self._perturber, "off")
        for magnify in (1.0, _MAGNIFY):
            group = [replace(point, scale=point.scale * magnify) for point in points[: self.max_lanes]]
            served, expected = self.losses(objective, batch, group), alone.losses(objective, batch, group)
            off = disagreement(served, expected, self._perturber.targets()[0].data.dtype)
            if off:
                raise RunError(
                    f"the server's losses differ from the model's by {off:.3g} at {magnify:g} eps on the first batch. "
                    "Remedy: --scorer torch; --dtype float32 tells whether it is rounding."
                )
        self.forwards = 0


def served(session: Session, server: Server) -> Served:
    """Start `server` for a session whose optimizer is built. Raises ConfigError for what cannot be served so."""
    config, optimizer, objective = session.config, session.optimizer, session.objective
    points = optimizer.estimator.points(config.seed, 0)
    if not objective.by_scores:
        raise ConfigError(
            f"{objective.says or type(objective).__name__} is no function of candidates' log-probabilities, which are "
            "all that a server gives. Remedy: --scorer torch."
        )
    if optimizer.estimator.per_example or any(point.each for point in points):
        raise ConfigError(
            f"{config.method} perturbs every example in its own direction, and an adapter is one for all. Remedy: "
            "--method lozo, or --scorer torch."
        )
    batch = session.batch(session.parts(0)[0])
    sequences(batch)  # raises where the batch is of another kind
    header = optimizer.header()
    server.start(
        Order(
            model=config.model,
            dtype=header["parameters"][0]["dtype"],
            trust_remote_code=config.trust_remote_code,
            header=json.dumps(header).encode(),
            bank_rank=config.bank_rank,
            rank=columns(optimizer, config.bank_rank, config.steps),
            layers=tuple(layer_of(parameter["name"]) for parameter in header["parameters"]),
            slots=min(len(points), _MOST_SLOTS),
            length=max(session.lengths) + 1,
            reply=config.max_new_tokens,
        )
    )
    return Served(server, objective, optimizer.perturber)


@contextmanager
def server_of(config: TrainConfig, given: Server | None, alone: bool) -> Iterator[Server | None]:
    """The server of a run: the one that was given, or one of its own, or None where the model itself is evaluated.

    alone: whether one process without helpers trains. Raises ConfigError for options that cannot be served.
    """
    if given is None and config.scorer == "torch":
        yield None
        return
    _refuse(config, alone)
    if given is not None:
        yield given
        return
    from zotune.engines.vllm import Vllm

    server = Vllm(config.scorer_args)
    try:
        yield server
    finally:
        server.close()


def _refuse(config: TrainConfig, alone: bool) -> None:
    if "bank" not in [part.strip() for part in config.scope.split("&")]:
        raise ConfigError(
            f"a server perturbs by adapters beside linear layers, and {config.method} with scope {config.scope} trains "
            "other weights. Remedy: --scope bank with a low-rank method, such as --method lozo; or --scorer torch."
        )
    for name, reason in _REFUSED.items():
        if getattr(config, name) is not None:
            raise ConfigError(f"scorer and {name} cannot be used together: {reason}. Remedy: leave {flag(name)} out.")
    if not alone:
        raise ConfigError("a server is one process's, and helps no pool or torchrun. Remedy: zotune train alone.")
