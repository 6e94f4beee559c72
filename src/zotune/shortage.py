"""Out of memory: what was foreseen, what was taken, which part is the largest, and what to change."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager

from zotune.errors import OutOfMemory
from zotune.forecast import foreseen, said
from zotune.machine import free_memory_bytes, is_shortage, peak_memory_bytes, shortage_said
from zotune.session import Session
from zotune.watch import size


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
    return " ".join([*parts, f"Remedy: {_remedy(session, terms)}"])


def _may_wait(session: Session) -> bool:
    optimizer = session.optimizer
    return optimizer.parallel is None and optimizer.direction.may_wait and optimizer.rule.may_wait


def _remedy(session: Session, terms: dict[str, int] | None) -> str:
    config = session.config
    resume = f"`zotune resume {shlex.quote(str(config.output_dir))}"
    rows = min(config.rows_per_forward or 2**32, max((len(unit) for unit in session.units), default=1))
    largest = "activations"
    if terms is not None:
        largest = max(("activations", "reused", "weights", "state"), key=lambda name: terms[name])
    splits = rows > 1 and not session.objective.set_level and not session.optimizer.direction.reads_inputs
    if largest == "reused":
        return f"{resume} --reuse-mb 0`: the same steps, kept activations are computed again."
    smaller = (
        f"{resume} --rows-per-forward {max(rows // 2, 1)} --eval-batch-size {max(config.eval_batch_size // 4, 1)}`"
    )
    if splits and largest == "activations":
        return f"{smaller} goes on with the same steps, in smaller forwards."
    if largest == "weights" and config.offload is None and _may_wait(session):
        home = "cpu" if session.device.type == "cuda" else "disk"
        return f"{resume} --offload {home}`: the same steps, the model comes block by block."
    other = ["another method"] * (largest == "state") + ["--dtype bfloat16"] * (config.dtype == "float32")
    less = f"{smaller} takes less for activations; otherwise " if splits else ""
    return f"{less}start another run with {', '.join([*other, 'a smaller model'])}."
