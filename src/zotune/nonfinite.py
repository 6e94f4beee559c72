"""What becomes of a step whose loss is NaN or infinite: it stops the run, or is left out and recorded as left out.

With `halve-eps` the radius is halved from the next step on as well. That needs no record of its own: a replay halves it
at the same step.

A step that was left out has one loss in the journal, NaN, so it can never be taken for one that was applied: a replay
counts it and changes no weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, final

from zotune.errors import JournalError, NonFiniteLoss, UserError
from zotune.optimizer import ZerothOrder
from zotune.records import StepRecord
from zotune.watch import Watch

MOST = 10  # steps left out in a row, after which the run has diverged and going on would hide it


def skipped(record: StepRecord) -> bool:
    """Whether a recorded step was left out."""
    return not all(map(math.isfinite, record.losses))


def mean_loss(losses: Sequence[float]) -> float:
    """The mean; NaN when there is none or one is not finite."""
    try:
        return math.fsum(losses) / len(losses) if losses and all(map(math.isfinite, losses)) else math.nan
    except OverflowError:  # a sum of numbers near the largest
        return math.inf


def replay_step(optimizer: ZerothOrder, record: StepRecord) -> None:
    """Apply one recorded step; one that was left out is left out again.

    Raises UserError for one out of order, JournalError for one with too few losses.
    """
    if not skipped(record):
        try:
            optimizer.estimator.probes(optimizer.seed, record.step, record.losses)
        except IndexError:
            raise JournalError(
                f"step {record.step} of the journal has {len(record.losses)} losses, fewer than its method reads. "
                "Remedy: restore the file from a copy."
            ) from None
        optimizer.replay(record)
    elif record.step != optimizer.steps:
        raise UserError(
            f"record of step {record.step} does not follow step {optimizer.steps} of this run. Remedy: replay in order."
        )
    else:
        optimizer.leave_out()


@final
class Skips:
    """Leaves out steps with a loss that is not finite, unless `policy` is "stop", up to MOST in a row."""

    def __init__(self, policy: Literal["stop", "skip", "halve-eps"], before: Sequence[StepRecord]) -> None:
        self._policy = policy
        self._in_row = next((i for i, r in enumerate(reversed(before)) if not skipped(r)), len(before))

    @contextmanager
    def guard(self, optimizer: ZerothOrder, record: Callable[[StepRecord], None], watch: Watch) -> Iterator[None]:
        """Around one step. Raises NonFiniteLoss when the policy is "stop", and behind MOST steps left out in a row."""
        try:
            yield
            self._in_row = 0
        except NonFiniteLoss as error:
            if self._policy == "stop":
                raise
            if self._in_row >= MOST:
                raise NonFiniteLoss(f"{MOST} steps in a row were left out, and again: {error}") from None
            self._in_row += 1
            halved = f"; eps is {optimizer.estimator.eps / 2:g} from here on" if optimizer.halve_eps else ""
            watch.say(f"left out: {str(error).partition(' Remedy:')[0]}{halved}")
            lrs = tuple(float(group["lr"]) for group in optimizer.param_groups)
            record(StepRecord(optimizer.steps, lrs, (math.nan,)))
            optimizer.leave_out()
