"""Steps whose losses come from a server of the model, such as vLLM, in place of the model's own forward passes.

The base is read-only (`--scope bank`), so what is trained is an adapter of low rank, and a server of models holds many
of those beside one base: a slot for each point of a step, and one for what was learned so far, which answers requests
in between. The workers of the server make the adapters themselves (`mirror.py`): seeds, records and scalars cross.
The batch is scored once for all points; the objective makes losses of the log-probabilities.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor

from zotune.agreement import disagreement
from zotune.config import TrainConfig
from zotune.engines.mirror import columns, layer_of
from zotune.engines.server import Answer, Order, Question, Server
from zotune.errors import ConfigError, RunError
from zotune.estimate import Point
from zotune.evaluator import Evaluator
from zotune.objective.base import Batch, Objective, to_device
from zotune.objective.sequences import Scored, mean_scores, sequences
from zotune.option import flag
from zotune.perturb import Perturber
from zotune.scorer import Scorer, Within, nothing

if TYPE_CHECKING:
    from zotune.session import Session

# Points of a step that are scored together at most; each has a slot of its own.
_MOST_SLOTS = 16
# Tokens that may follow in one question: as many as vLLM takes.
_MOST_FOLLOWING = 128
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
class Served(Scorer):
    """The losses of a run's steps, from a server."""

    mode = "lanes"

    def __init__(self, server: Server, objective: Objective, perturber: Perturber) -> None:
        self._server, self._objective, self._perturber = server, objective, perturber
        self.max_lanes = _MOST_SLOTS

    def losses(self, objective: Any, batch: Batch, points: Sequence[Point], within: Within = nothing) -> Tensor:
        asked = sequences(batch)
        places, questions = _questions(asked)
        losses = []
        for answers in self._server.score(points[0].key.step, points, questions):
            scored = [_scores_of(each, answers[place]) for each, place in zip(asked, places, strict=True)]
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


def _questions(asked: Sequence[Scored]) -> tuple[list[int], list[Question]]:
    """The fewest questions that answer all, and for each sequence the number of its question.

    Candidates that differ in their last token alone are one question: what stands before it is read once.
    """
    last: dict[tuple[tuple[int, ...], int], tuple[list[int], list[bool]]] = {}
    keys = []
    for each in asked:
        read, end, part = each.tokens[:-1], each.tokens[-1], 0
        while True:
            follow, inner = last.setdefault((read, part), ([], []))
            if end in follow or len(follow) < _MOST_FOLLOWING:
                break
            part += 1
        if end not in follow:
            follow.append(end)
        inner.append(each.places[0] < len(read))
        keys.append((read, part))
    number = {key: at for at, key in enumerate(last)}
    questions = [Question(read, tuple(follow), any(inner)) for (read, _), (follow, inner) in last.items()]
    return [number[key] for key in keys], questions


def _scores_of(each: Scored, answer: Answer) -> list[float]:
    """Log-probabilities of the scored tokens of a sequence."""
    end = len(each.tokens) - 1
    return [answer.follow[each.tokens[at]] if at == end else answer.inner[at - 1] for at in each.places]


def served(session: Session, server: Server) -> Served:
    """Start `server` for a session whose optimizer is built.

    Raises ConfigError for what cannot be served so, CoverageError for layers without an adapter, RunError where the
    server does not start.
    """
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
            length=max(session.lengths),
            reply=_reply(session),
        )
    )
    return Served(server, objective, optimizer.perturber)


def _reply(session: Session) -> int:
    """Tokens that an answer may have, behind the longest sequence that is read: at least the one that ends a score."""
    longest, limit = max(session.lengths), getattr(session.model.config, "max_position_embeddings", None)
    room = session.config.max_new_tokens if limit is None else min(session.config.max_new_tokens, limit - longest)
    if room < 1:
        raise ConfigError(
            f"rows of {longest} tokens fill the model's {limit} positions, and a server needs one more. Remedy: "
            f"--max-length {max(1, int(limit or 0) - 1)}."
        )
    return room


@contextmanager
def server_of(config: TrainConfig, given: Server | None, alone: bool) -> Iterator[Server | None]:
    """The server of a run: the one that was given, or one of its own, or None where the model itself is evaluated.

    Raises as `check_served`.
    """
    if given is None and config.scorer == "torch":
        yield None
        return
    check_served(config, alone)
    if given is not None:
        yield given
        return
    from zotune.engines.vllm import Vllm

    server = Vllm(config.scorer_args)
    try:
        yield server
    finally:
        server.close()


def check_served(config: TrainConfig, alone: bool) -> None:
    """Raises ConfigError for options that cannot be served. alone: whether one process without helpers trains."""
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
