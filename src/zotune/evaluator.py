"""Losses at several points of the weights: in one forward where that is proven right, one by one elsewhere.

The first batch is evaluated both ways, at the run's own radius and at a much larger one, where a lane that used the
wrong weights could not hide in rounding; unless the losses agree, and whenever an operation has no lane rule, points
are evaluated one at a time, and the reason is kept in `reason`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, final

import torch
from torch import Tensor

from zotune.agreement import compare, widest_rounding
from zotune.direction import Direction
from zotune.distributed.sharded import no_gradient
from zotune.errors import ConfigError, RunError, UserError
from zotune.estimate import Point
from zotune.lazy import Lanes, LaneUnsupported
from zotune.machine import is_fault
from zotune.perturb import Perturber
from zotune.scorer import Objective, Scorer, Within, nothing
from zotune.stacked import asked, batch_rows, repeat, spread_out

if TYPE_CHECKING:
    from zotune.graphs.recorder import Recorder

logger = logging.getLogger(__name__)

Mode = Literal["auto", "on", "off"]

# How much larger than the run's radius the second self-check's is.
_MAGNIFY = 32.0


@final
class Evaluator(Scorer):
    """Losses of an objective at several points: in lanes where that is proven right, one by one elsewhere."""

    def __init__(
        self,
        perturber: Perturber,
        lanes: Mode = "auto",
        max_lanes: int = 2,
        coverage: bool = True,
        in_step: bool = False,
    ) -> None:
        self.perturber = perturber
        self._in_step = in_step  # whether other processes, at other batches, must run as many forwards
        self.max_lanes = max_lanes
        self.reason = "lanes=off was asked for" if lanes == "off" else ""
        self.mode = "sequential" if lanes == "off" else "undecided"
        self.must = lanes == "on"
        self.coverage = coverage
        self._proven: list[str] = []  # how the proven forward read its activations
        self._choices: list[bool] = []  # what its choices by values came to
        self.recorder: Recorder | None = None  # plays recorded forwards
        self._proven_with: Objective | None = None  # the objective whose lanes were proven
        self._judged = False  # whether the objective is known to give one loss for each example
        self.forwards = 0

    def losses(self, objective: Objective, batch: Any, points: Sequence[Point], within: Within = nothing) -> Tensor:
        if self._in_step and not getattr(objective, "one_forward", True):
            raise ConfigError(
                "some micro-batches take more forwards than others, so that the processes of a sharded model would "
                "lose step. Remedy: parallel 'shard'."
            )
        if not self._judged and any(point.each for point in points):
            self._judge(objective, batch, replace(points[0], scale=0.0), within)
        if self.mode == "undecided" or self.recorder is not None:
            self.decide(objective, batch, points, within)
        size = self.max_lanes if self.mode == "lanes" else 1
        groups = [points[i : i + size] for i in range(0, len(points), size)]
        # Waited for once, when all forwards are on their way: a model over several devices works on them side by side.
        found, doubted = fetched([self._together(objective, batch, group, within) for group in groups])
        if doubted:
            logger.info("one batch evaluated anew: its ids are laid out in another way than those of the first")
            found, _ = fetched([self._together(objective, batch, group, within, waiting=True) for group in groups])
        return found

    def _together(
        self, objective: Objective, batch: Any, points: Sequence[Point], within: Within, waiting: bool = False
    ) -> Seen:
        """One forward for all points where that is proven, else one each. waiting: for every choice by a value."""
        together = not getattr(objective, "one_at_a_time", "")
        if not getattr(objective, "one_forward", True):  # its witness was asked, not its loss
            together = together and objective is self._proven_with
        together = self.mode == "lanes" and together and (len(points) > 1 or points[0].each)
        if self.recorder is not None and not waiting and (together or len(points) == 1):
            found = self.recorder.losses(objective, batch, points, within)
            if found is not None:
                self.forwards += len(points)
                return found
        if together:
            before = self.forwards
            try:
                return self._lanes(objective, batch, points, within, waiting=waiting)
            except (LaneUnsupported, RuntimeError) as unsupported:
                if is_fault(unsupported):
                    raise
                if self._in_step:
                    raise RunError(
                        f"a micro-batch cannot be evaluated as the first one was ({unsupported}), and processes at "
                        "other micro-batches cannot know. Remedy: lanes=off, or parallel 'shard'."
                    ) from None
                # This batch's shapes lead the model another way than the proven one: it alone is evaluated one by one.
                logger.info("one batch evaluated point by point: %s", unsupported)
                self.forwards = before
        return self._singly(objective, batch, points, within)

    def _lanes(
        self,
        objective: Objective,
        batch: Any,
        points: Sequence[Point],
        within: Within,
        proof: bool = False,
        waiting: bool = False,
    ) -> Seen:
        plan = () if proof or waiting or not self.perturber.quiet else self._choices
        copy, direction = 0 if proof else None, self._drawn(proof)
        losses, lanes = self.stacked(objective, batch, points, within, direction, plan, copy)
        self._count(lanes, len(points))
        # Of several forwards some batches need more than others.
        several = not getattr(objective, "one_forward", True)
        trace = list(dict.fromkeys(lanes.trace)) if several else lanes.trace
        if proof and not self._proven:
            self._proven, self._choices = trace, lanes.choices
        if self._proven != trace:
            raise LaneUnsupported("activations are stacked in another way than on the first batch")
        return Seen(losses, lanes.doubted())

    def stacked(
        self,
        objective: Objective,
        batch: Any,
        points: Sequence[Point],
        within: Within,
        direction: Direction,
        plan: Sequence[bool] = (),
        copy: int | None = None,
        recording: bool = False,
    ) -> tuple[Tensor, Lanes]:
        """The losses (points, examples) of one forward of the batch, once for each point; nothing is counted or judged.

        plan: as `Lanes`. copy: as `asked`. Raises LaneUnsupported.
        """
        rows = batch_rows(batch)
        if rows is None:
            raise LaneUnsupported("the batch is not a mapping of tensors that share their first dimension")
        spread = [own for point in points for own in spread_out(point, rows)]
        one, quiet = rows * len(points) // len(spread), recording or self.perturber.quiet
        # Every parameter in scope rides in lanes, moved or not: so what is proven does not depend on which are moved.
        at = self.perturber.at(
            *spread, rows=one, every=True, direction=direction, copies=len(points), quiet=quiet, plan=plan
        )
        with no_gradient(self.perturber.model), at as lanes, within(len(points)):
            losses = asked(objective, self.perturber.model, repeat(batch, len(points)), copy)
        if losses.numel() != len(points) * rows:
            raise LaneUnsupported(f"the objective returned {tuple(losses.shape)} losses, not one for each example")
        return losses.detach().reshape(len(points), -1), lanes

    def alone(
        self,
        objective: Objective,
        batch: Any,
        point: Point,
        within: Within,
        direction: Direction,
        copy: int | None = None,
        recording: bool = False,
    ) -> tuple[Tensor, Lanes]:
        """The losses (1, examples) at one point; nothing is counted. copy: as `asked`."""
        quiet = recording or self.perturber.quiet
        at = self.perturber.at(point, rows=batch_rows(batch) or 1, direction=direction, quiet=quiet)
        with no_gradient(self.perturber.model), at as lanes, within(1):
            losses = asked(objective, self.perturber.model, batch, copy)
        return losses.detach().reshape(1, -1), lanes

    def _drawn(self, proof: bool) -> Direction:
        direction = self.perturber.direction
        return direction.everywhere() if proof else direction

    def _singly(
        self, objective: Objective, batch: Any, points: Sequence[Point], within: Within, proof: bool = False
    ) -> Seen:
        found, direction = [], self._drawn(proof)
        for number, point in enumerate(points):
            copy = number if proof else None
            if point.each:
                found.append(self._row_by_row(objective, batch, point, direction, copy))
                continue
            losses, lanes = self.alone(objective, batch, point, within, direction, copy)
            self._count(lanes, 1)
            found.append(losses)
        return Seen(torch.cat(found), None)

    def _row_by_row(
        self, objective: Objective, batch: Any, point: Point, direction: Direction, copy: int | None
    ) -> Tensor:
        """Every example alone, along its own direction. What a batch shares among its examples is not reused here."""
        rows = batch_rows(batch)
        if rows is None:
            raise UserError(
                "this method perturbs every example in its own direction, so the batch must be a mapping of tensors "
                "that share their first dimension. Remedy: pass such a batch, or use another method."
            )
        losses = []
        for row, own in enumerate(spread_out(point, rows)):
            part = {key: v[row : row + 1] if isinstance(v, Tensor) else v for key, v in batch.items()}
            with no_gradient(self.perturber.model), self.perturber.at(own, direction=direction) as lanes:
                loss = asked(objective, self.perturber.model, part, copy)
            if self.coverage:
                self.perturber.check_coverage(lanes)
            if loss.numel() != 1:
                raise UserError(
                    f"the objective returned {loss.numel()} losses for one example. "
                    "Remedy: return one loss for each example."
                )
            losses.append(loss.detach().reshape(1))
        self.forwards += 1
        return torch.cat(losses).unsqueeze(0)

    def _judge(self, objective: Objective, batch: Any, centre: Point, within: Within) -> None:
        """Raises UserError unless the objective gives a loss for each example; one forward that is not counted.

        The score of a whole set would pass, asked for one example after another, and mean something else.
        """
        rows = batch_rows(batch) or 1
        if rows == 1:
            return
        with no_gradient(self.perturber.model), self.perturber.at(centre), within(1):
            losses = objective(self.perturber.model, batch)
        if losses.numel() != rows:
            raise UserError(
                f"this method needs one loss for each of the batch's {rows} examples, and the objective returned "
                f"{losses.numel()}. Remedy: return losses of shape (B,), or use a method that takes a single number."
            )
        self._judged = True

    def check(self, lanes: Lanes) -> None:
        """Raises CoverageError, and LaneUnsupported where several points go another way than the proven ones."""
        if self.coverage:
            self.perturber.check_coverage(lanes)
        if lanes.count > 1 and lanes.trace != self._proven:
            raise LaneUnsupported("activations are stacked in another way than on the first batch")

    def _count(self, lanes: Lanes, forwards: int) -> None:
        self.forwards += forwards
        if self.coverage:
            self.perturber.check_coverage(lanes)

    def decide(self, objective: Objective, batch: Any, points: Sequence[Point], within: Within = nothing) -> None:
        """Lanes if this batch proves them equal to one evaluation at a time; else sequential, with the reason.

        The first `losses` call does it. A resumed run calls it with the run's first batch on the base weights instead,
        so that both decide alike.
        """
        if self.mode == "undecided":
            self._decide(objective, batch, points, within)
        if self.recorder is not None:
            self.recorder.prove(objective, batch, self._group(points), within)

    def _group(self, points: Sequence[Point]) -> list[Point]:
        """The first points that ride in one forward."""
        moving = [point for point in points if point.scale]
        return moving[: self.max_lanes if self.mode == "lanes" else 1]

    def _decide(self, objective: Objective, batch: Any, points: Sequence[Point], within: Within) -> None:
        self.mode = "sequential"
        before = self.forwards
        moving = [point for point in points if point.scale]
        # The centre is the same at both radii, so it proves least: it rides only where there is no second point.
        group = (list(points) if len(moving) == 1 and not moving[0].each else moving)[: self.max_lanes]
        if not moving or (self.max_lanes < 2 or len(group) < 2) and not moving[0].each:
            self.reason = "one point per forward"
            return
        try:
            refused = getattr(objective, "one_at_a_time", "")
            if refused:
                raise LaneUnsupported(refused)
            self._prove(objective, batch, group, within)
        except (LaneUnsupported, RuntimeError) as unsupported:
            # Shapes that do not fit together are the model's own RuntimeError; one point at a time they may fit.
            if is_fault(unsupported):
                raise
            self.reason = str(unsupported).strip().splitlines()[0]
            if self.must:
                raise refused_lanes(self.reason) from None
            self._proven = []
            logger.info("one evaluation at a time: %s", self.reason)
        else:
            self.mode, self.reason, self._proven_with = "lanes", "", objective
        self.forwards = before

    def _prove(self, objective: Objective, batch: Any, points: Sequence[Point], within: Within) -> None:
        """Raises LaneUnsupported unless lanes equal single evaluations at these points; counts no forwards.

        Every parameter in scope is moved: one that rests in this step could hide a wrong lane until it moves.
        """
        before = self.forwards
        for magnify in (1.0, _MAGNIFY):
            group = [replace(point, scale=point.scale * magnify) for point in points]
            together = self._lanes(objective, batch, group, within, proof=True).losses
            alone = self._singly(objective, batch, group, within, proof=True).losses
            both = together.to("cpu", torch.float64), alone.to("cpu", torch.float64)
            compare(*both, widest_rounding(self.perturber))
        self.forwards = before


@final
@dataclass(frozen=True, slots=True)
class Seen:
    """Losses (points, examples) on their device, and whether a choice that they rest on was wrong, () bool, or None."""

    losses: Tensor
    doubted: Tensor | None


def fetched(seen: Sequence[Seen]) -> tuple[Tensor, bool]:
    """All losses, (points, examples) float64 on the CPU, and whether any is doubted: one copy from the device."""
    losses = torch.cat([each.losses for each in seen])
    doubts = [each.doubted.to(losses.dtype).reshape(1) for each in seen if each.doubted is not None]
    if not doubts:
        return losses.to("cpu", torch.float64), False
    values = torch.cat([losses.flatten(), *doubts]).to("cpu", torch.float64)
    return values[: losses.numel()].view(losses.shape), bool(values[losses.numel() :].any())


def refused_lanes(reason: str) -> UserError:
    """What is said where lanes are asked for and cannot be."""
    return UserError(f"lanes=on, but {reason}. Remedy: use lanes=auto.")
