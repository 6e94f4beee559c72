"""Rebuild a run's weights from its base model and its journal: no data, no forward passes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, final

from torch import Tensor, nn

from zotune import journal
from zotune.errors import JournalError, RunError
from zotune.header import check_arguments, check_header
from zotune.methods import METHODS
from zotune.noise import STREAM, STREAM_VERSION
from zotune.nonfinite import replay_step
from zotune.optimizer import ZerothOrder
from zotune.records import HashRecord, Record, StepRecord
from zotune.weights import weights_sha256


@final
class Replayed(dict[str, Any]):
    """What a replay found: `steps`, `weights_sha256`, `recorded_sha256` (None if none was recorded), `verified`."""


def replay(path: str | os.PathLike[str], model: nn.Module, *, steps: int | None = None) -> Replayed:
    """Apply the journal at `path` to `model`, which must hold the base weights; in place, the first `steps` steps.

    Raises JournalError for a corrupt journal or one of another noise stream, RunError when the model is not the base
    that the journal was written for, and when a recorded hash differs from the weights at that step.
    """
    header, records, _ = journal.read(Path(path))
    optimizer = rebuild(header, model)
    return apply(optimizer, records, steps)


def rebuild(header: dict[str, Any], model: nn.Module, **options: Any) -> ZerothOrder:
    """The optimizer that a journal's header describes, on `model`, at step 0."""
    check_header(header)
    stream = header["stream"]
    if (stream.get("name"), stream.get("version")) != (STREAM, STREAM_VERSION):
        raise JournalError(
            f"this journal's noise stream is {stream}, this version draws {STREAM} {STREAM_VERSION}. "
            "Remedy: use the zotune version that wrote it."
        )
    method = header.get("method")
    if method not in METHODS:
        raise JournalError(
            f"this journal was written by method {method!r}, unknown here. Remedy: a zotune that has it."
        )
    named = dict(model.named_parameters())
    for expected in header["parameters"]:
        found = named.get(expected["name"])
        if found is None:
            raise RunError(
                f"the model has no parameter {expected['name']!r}. Remedy: load the model the run began from."
            )
        shape, dtype = list(found.shape), str(found.dtype).removeprefix("torch.")
        if (shape, dtype) != (expected["shape"], expected["dtype"]):
            raise RunError(
                f"{expected['name']} is {dtype} {shape} here and {expected['dtype']} {expected['shape']} in the "
                "journal. Remedy: load the model the run began from, in the run's dtype."
            )
    recorded = header.get("scope_sha256")
    here = None if recorded is None else scope_sha256(model, [p["name"] for p in header["parameters"]])
    if here != recorded:
        raise RunError(
            f"the model's weights are not those the run began from: in scope their sha256 is {here}, the journal has "
            f"{recorded}. Remedy: load the base model again; a model that was already trained cannot be replayed onto."
        )
    groups = [
        {"params": [named[name] for name in group["names"]], "weight_decay": group["weight_decay"]}
        for group in header["groups"]
    ]
    build = METHODS[method].build
    options = {"fold_every": header.get("fold_every", 1), "blocks": header.get("blocks"), **options}
    options["halve_eps"] = header.get("halve_eps", False)
    check_arguments(build, header["arguments"])
    try:
        return build(model, lr=0.0, seed=header["seed"], params=groups, **header["arguments"], **options)
    except TypeError as error:
        raise JournalError(
            f"this journal's arguments do not fit method {method!r}: {error}. Remedy: restore the file from a copy."
        ) from None


def apply(
    optimizer: ZerothOrder,
    records: list[Record],
    steps: int | None = None,
    fold: Callable[[StepRecord], None] | None = None,
) -> Replayed:
    """Fold recorded steps into the optimizer's model, checking every recorded hash on the way. `fold` applies a step,
    where that takes more than the record.
    """
    recorded: HashRecord | None = None
    for record in records:
        if isinstance(record, HashRecord):
            recorded = record
            if record.step > optimizer.steps and (steps is None or record.step <= steps):
                raise JournalError(
                    f"a hash of the weights after {record.step} steps stands where {optimizer.steps} are recorded: a "
                    "step is missing. Remedy: restore the file from a copy."
                )
            if record.step == optimizer.steps:
                _check(optimizer, record)
        elif steps is not None and optimizer.steps >= steps:
            break
        elif record.step >= optimizer.steps:
            replay_step(optimizer, record) if fold is None else fold(record)
    found = current_sha256(optimizer)
    known = recorded.sha256 if recorded is not None and recorded.step == optimizer.steps else None
    return Replayed(steps=optimizer.steps, weights_sha256=found, recorded_sha256=known, verified=known == found)


def _check(optimizer: ZerothOrder, record: HashRecord) -> None:
    found = current_sha256(optimizer)
    if found != record.sha256:
        raise RunError(
            f"after {record.step} steps the weights hash to {found[:16]}..., the journal recorded "
            f"{record.sha256[:16]}... Remedy: check that base model, library version and dtype are those of the run."
        )


def current_sha256(optimizer: ZerothOrder) -> str:
    """`weights_sha256` of the optimizer's parameters. Updates that wait are folded first: a hash marks a fold."""
    return weights_sha256(optimizer.weights())


def scope_sha256(model: nn.Module, names: list[str]) -> str:
    """`weights_sha256` of some parameters of a model."""
    named: dict[str, Tensor] = dict(model.named_parameters())
    return weights_sha256({name: named[name] for name in names})


def steps_of(records: list[Record]) -> list[StepRecord]:
    """The step records alone."""
    return [record for record in records if isinstance(record, StepRecord)]
