"""Out of memory: what was foreseen, what was taken, which part is the largest, and what to change."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from zotune.errors import OutOfMemory
from zotune.forecast import foreseen, said
from zotune.machine import free_memory_bytes, is_shortage, peak_memory_bytes, shortage_said
from zotune.session import Session
from zotune.watch import memory_bytes, size

_SPARE = 0.95  # of the free memory, which a forecast may fill
_HELPS = 0.99  # of a peak, below which another is worth smaller forwards


@contextmanager
def explained(session: Session) -> Iterator[None]:
    """What runs out of memory within raises OutOfMemory. Nothing that was recorded is lost by it."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_shortage(error):
            raise
        raise OutOfMemory(explain(session, error)) from error


def explain(session: Session, error: BaseException) -> str:
    """The message: torch's own first sentence, foreseen against actual, and the change that helps most."""
    terms, taken, free = foreseen(session), peak_memory_bytes(session.device), free_memory_bytes(session.device)
    parts = [f"{shortage_said(error)}."]
    if terms is not None:
        parts.append(f"Foreseen: {said(terms)}; taken: {size(taken)}{'' if free is None else f', free: {size(free)}'}.")
    parts.append("No recorded step is lost.")
    return " ".join([*parts, f"Remedy: {_remedy(session, terms, _room(session, terms, taken, free))}"])


def _room(session: Session, terms: dict[str, int] | None, taken: int, free: int | None) -> float:
    """Bytes that the process can have: what it holds and what is free, or, where that would have been enough and was
    not, as under a limit of its own, what it got.
    """
    held = torch.cuda.memory_allocated(session.device) if session.device.type == "cuda" else memory_bytes()
    there = held + _SPARE * (free or 0)
    return taken if terms is not None and terms["peak"] <= there else there


def _may_wait(session: Session) -> bool:
    optimizer = session.optimizer
    return optimizer.parallel is None and optimizer.direction.may_wait and optimizer.rule.may_wait


def _smaller(session: Session, rows: int, room: float) -> tuple[str, int | None]:
    """Flags for `rows` or fewer in a forward, as many as are foreseen to fit, and the peak that is foreseen with them.
    They are not halved again where that would hardly help.
    """

    def with_rows(rows: int) -> tuple[str, int | None]:
        evals = max(1, min(session.config.eval_batch_size, 2 * rows))
        terms = foreseen(session, rows_per_forward=rows, eval_batch_size=evals)
        return f"--rows-per-forward {rows} --eval-batch-size {evals}", None if terms is None else terms["peak"]

    flags, peak = with_rows(rows)
    while rows > 1 and peak is not None and peak > room:
        rows //= 2
        fewer, less = with_rows(rows)
        if less is None or less > _HELPS * peak:
            break
        flags, peak = fewer, less
    return flags, peak


def _remedy(session: Session, terms: dict[str, int] | None, room: float = math.inf) -> str:
    config = session.config
    resume = f"`zotune resume {shlex.quote(str(config.output_dir))}"
    rows = min(config.rows_per_forward or 2**32, max((len(unit) for unit in session.units), default=1))
    largest = "activations"
    if terms is not None:
        largest = max(("activations", "reused", "weights", "state"), key=lambda name: terms[name])
    splits = rows > 1 and not session.objective.set_level and not session.optimizer.direction.reads_inputs
    if largest == "reused":
        return f"{resume} --reuse-mb 0`: the same steps, kept activations are computed again."
    flags, peak = _smaller(session, max(rows // 2, 1), room) if splits else ("", None)
    smaller = f"{resume} {flags}`"
    if splits and largest == "activations":
        told = "" if peak is None else f", about {size(peak)} foreseen{'' if peak <= room else ', which may not fit'}"
        return f"{smaller} goes on with the same steps, in smaller forwards{told}."
    if largest == "weights" and config.offload is None and _may_wait(session):
        home = "cpu" if session.device.type == "cuda" else "disk"
        return f"{resume} --offload {home}`: the same steps, the model comes block by block."
    other = ["another method"] * (largest == "state") + ["--dtype bfloat16"] * (config.dtype == "float32")
    less = f"{smaller} takes less for activations; otherwise " if splits else ""
    return f"{less}start another run with {', '.join([*other, 'a smaller model'])}."
