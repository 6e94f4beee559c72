"""What a run says of its steps and evaluations: the live line, and the lines of its metrics."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from zotune.nonfinite import mean_loss, skipped
from zotune.records import StepRecord
from zotune.run import RunFolder
from zotune.session import Session
from zotune.watch import Watch

if TYPE_CHECKING:
    from zotune.distributed.follower import FollowerFolder

    Folder = RunFolder | FollowerFolder


def log_step(session: Session, folder: Folder, record: StepRecord) -> float:
    """Write the line of a step just taken; returns its mean loss."""
    loss = mean_loss(record.losses)
    coef = coef_of(session, record)
    folder.log_metrics({"step": record.step + 1, "loss": loss, "projected_gradient": coef, "lr": record.lrs[0]})
    return loss


def live(session: Session, record: StepRecord, seconds: float, forwards: int) -> dict[str, float]:
    """What the live line says of a step just taken, beside its loss."""
    points = len(session.optimizer.estimator.points(session.config.seed, record.step))
    held = {"memory_bytes": torch.cuda.memory_allocated(session.device)} if session.device.type == "cuda" else {}
    return {
        **held,
        "g": coef_of(session, record),
        "snr": session.optimizer.signal_to_noise,
        "forwards/s": forwards / seconds,
        "tokens/s": session.tokens(record.step) * points / seconds,
    }


def coef_of(session: Session, record: StepRecord) -> float:
    """The projected gradient along the step's first direction; nan for a step that was left out."""
    if skipped(record):
        return math.nan
    return session.optimizer.probes[0].coef  # those of the step: an estimator with memory has moved on


def is_due(session: Session, step: int) -> bool:
    """Whether an evaluation comes after so many steps."""
    every = session.config.eval_every
    return session.eval_examples is not None and (step == session.config.steps or bool(every and step % every == 0))


def evaluate_now(session: Session, folder: Folder, watch: Watch) -> None:
    """Measure the held-out rows, write the line and say it; without such rows the line is empty."""
    found = session.evaluate()
    step = session.optimizer.steps
    values = {} if found is None else found.as_dict()
    folder.log_metrics({"step": step, "eval": values})
    if found is not None:
        watch.eval(step, {key: value for key, value in values.items() if value is not None})


def before_and_after(folder: Folder) -> dict[str, Any]:
    """`accuracy_before`, `accuracy_after`, and so on for loss and interval, from the first and the last evaluation.

    All are numbers or None.
    """
    rows = [row["eval"] for row in folder.metrics() if row.get("eval")]
    if not rows:
        return {}
    named = ("accuracy", "loss", "low", "high")
    keys = (*named, *(key for key in rows[0] | rows[-1] if key not in (*named, "examples")))
    both = {
        f"{key}_{when}": found.get(key) for key in keys for when, found in (("before", rows[0]), ("after", rows[-1]))
    }
    return both | {"eval_examples": rows[-1]["examples"]}
