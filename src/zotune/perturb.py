"""Evaluating the loss at theta + s * z without ever writing a perturbed weight.

For the duration of one evaluation every parameter in scope is replaced, inside its module, by a lazy stand-in
(`lazy.py`); the model's own code runs unchanged and the parameters stay bit-identical, whatever their dtype.

Several points can ride in one forward (lanes). The first batch is evaluated both ways, at the run's own radius and at
a much larger one, where a lane that used the wrong weights could not hide in rounding; unless the losses agree, and
whenever an operation has no lane rule, points are evaluated one at a time, and the reason is kept in `reason`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from zotune.direction import Direction, Target
from zotune.errors import CoverageError, UserError
from zotune.estimate import Point
from zotune.lane_rules import RULES
from zotune.lazy import Lanes, LaneUnsupported, Perturbed

logger = logging.getLogger(__name__)

Objective = Callable[[nn.Module, Any], Tensor]
Mode = Literal["auto", "on", "off"]

# How much larger than the run's radius the second self-check's is.
_MAGNIFY = 32.0


@final
class Perturber:
    """Evaluates a model at perturbed points.

    `names` are canonical parameter names (those of `model.named_parameters()`); a tied parameter counts once, under its
    first name, and is replaced at every place where it is used.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], direction: Direction, fast: bool = False) -> None:
        self.model, self.direction, self.fast = model, direction, fast
        by_id = {id(p): name for name, p in model.named_parameters() if name in set(names)}
        self._sites: dict[str, list[tuple[nn.Module, str]]] = {name: [] for name in names}
        for module in model.modules():
            for key, parameter in module._parameters.items():
                if parameter is not None and id(parameter) in by_id:
                    self._sites[by_id[id(parameter)]].append((module, key))
        missing = [name for name, sites in self._sites.items() if not sites]
        if missing:
            raise UserError(
                f"no parameter named {missing[0]!r} in the model. Remedy: use names of model.named_parameters()."
            )

    def targets(self) -> list[Target]:
        """The parameters in scope as they are now, in the order of the names given."""
        return [Target(name, self._parameter(name).detach(), self.fast) for name in self._sites]

    def _parameter(self, name: str) -> Tensor:
        module, key = self._sites[name][0]
        parameter = module._parameters[key]
        assert parameter is not None
        return parameter

    @contextmanager
    def at(self, *points: Point, rows: int = 1) -> Iterator[Lanes]:
        """Within the context the model is at `points` (one lane each, `rows` examples per lane), in eval mode.

        With one point any call works, `generate` included. Yields the Lanes, whose `touched` lists what was used.
        """
        lanes = Lanes(self.direction, points, rows, RULES)
        training = [module for module in self.model.modules() if module.training]
        saved: list[tuple[nn.Module, str, nn.Parameter | None]] = []
        try:
            for module in training:
                module.training = False
            for name, sites in self._sites.items():
                stand_in: Any = Perturbed(Target(name, self._parameter(name).detach(), self.fast), lanes)
                for module, key in sites:
                    saved.append((module, key, module._parameters[key]))
                    module._parameters[key] = stand_in
            yield lanes
        finally:
            for module, key, parameter in saved:
                module._parameters[key] = parameter
            for module in training:
                module.training = True

    def check_coverage(self, touched: set[str]) -> None:
        """Raises CoverageError unless every parameter in scope was used."""
        missing = [name for name in self._sites if name not in touched]
        if missing:
            listed = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            raise CoverageError(
                f"{len(missing)} of {len(self._sites)} parameters in scope were not used by the forward pass: "
                f"{listed}. Remedy: leave them out of the scope, or pass coverage=False if other batches use them."
            )


@final
class Evaluator:
    """Losses of an objective at several points: in lanes where that is proven right, one by one elsewhere."""

    def __init__(self, perturber: Perturber, lanes: Mode = "auto", max_lanes: int = 2, coverage: bool = True) -> None:
        self.perturber = perturber
        self.max_lanes = max_lanes
        self.reason = "lanes=off was asked for" if lanes == "off" else ""
        self.mode: Literal["undecided", "lanes", "sequential"] = "sequential" if lanes == "off" else "undecided"
        self._must = lanes == "on"
        self.coverage = coverage
        self._trace: list[str] | None = None  # how the proven forward read its activations
        self.forwards = 0

    def losses(
        self,
        objective: Objective,
        batch: Any,
        points: Sequence[Point],
        within: Callable[[int], AbstractContextManager[None]] = lambda lanes: nullcontext(),
    ) -> Tensor:
        """Per-example losses at each point, (points, examples) float64 on the CPU; a scalar loss counts as one example.

        `within(lanes)` is entered around each forward of that many lanes (reused activations, for one).
        """
        if self.mode == "undecided":
            self.decide(objective, batch, points, within)
        size = self.max_lanes if self.mode == "lanes" else 1
        groups = [points[i : i + size] for i in range(0, len(points), size)]
        try:
            return torch.cat([self._forward(objective, batch, group, within) for group in groups])
        except (LaneUnsupported, RuntimeError) as unsupported:
            if size == 1 or isinstance(unsupported, torch.OutOfMemoryError):
                raise
            # This batch's shapes lead the model another way than the proven one: it alone is evaluated one by one.
            logger.info("one batch evaluated point by point: %s", unsupported)
            return torch.cat([self._forward(objective, batch, [point], within) for point in points])

    def _forward(
        self,
        objective: Objective,
        batch: Any,
        points: Sequence[Point],
        within: Callable[[int], AbstractContextManager[None]],
    ) -> Tensor:
        count, rows = len(points), batch_rows(batch) or 1
        with torch.inference_mode(), self.perturber.at(*points, rows=rows) as lanes, within(count):
            losses = objective(self.perturber.model, batch if count == 1 else repeat(batch, count))
        self.forwards += count
        if self.coverage:
            self.perturber.check_coverage(lanes.touched)
        if count > 1 and losses.numel() != count * rows:
            raise LaneUnsupported(f"the objective returned {tuple(losses.shape)} losses, not one for each example")
        if count > 1:
            if self._trace is None:
                self._trace = lanes.trace
            elif self._trace != lanes.trace:
                raise LaneUnsupported("activations are stacked in another way than on the first batch")
        # The one place where the device is waited for.
        return losses.detach().reshape(count, -1).to("cpu", torch.float64)

    def decide(
        self,
        objective: Objective,
        batch: Any,
        points: Sequence[Point],
        within: Callable[[int], AbstractContextManager[None]] = lambda lanes: nullcontext(),
    ) -> None:
        """Lanes if this batch proves them equal to one evaluation at a time; else sequential, with the reason.

        The first `losses` call does it. A resumed run calls it with the run's first batch on the base weights instead,
        so that both decide alike.
        """
        if self.mode != "undecided":
            return
        self.mode = "sequential"
        if len(points) < 2 or self.max_lanes < 2:
            self.reason = "one point per forward"
            return
        try:
            if batch_rows(batch) is None:
                raise LaneUnsupported("the batch is not a mapping of tensors that share their first dimension")
            for magnify in (1.0, _MAGNIFY):
                group = [replace(point, scale=point.scale * magnify) for point in points[: self.max_lanes]]
                together = self._forward(objective, batch, group, within)
                alone = torch.cat([self._forward(objective, batch, [point], within) for point in group])
                _compare(together, alone, self._dtype())
        except (LaneUnsupported, RuntimeError) as unsupported:
            # Shapes that do not fit together are the model's own RuntimeError; one point at a time they may fit.
            if isinstance(unsupported, torch.OutOfMemoryError):
                raise
            self.reason = str(unsupported).strip().splitlines()[0]
            if self._must:
                raise UserError(f"lanes=on, but {self.reason}. Remedy: use lanes=auto.") from None
            self._trace = None
            logger.info("one evaluation at a time: %s", self.reason)
        else:
            self.mode, self.reason = "lanes", ""
        self.forwards = 0

    def _dtype(self) -> torch.dtype:
        sizes = {target.data.dtype for target in self.perturber.targets()}
        return min(sizes, key=lambda dtype: -torch.finfo(dtype).eps)


def _compare(together: Tensor, alone: Tensor, dtype: torch.dtype) -> None:
    """A wrong lane is off by what separates the points; a right one by rounding. Non-finite losses must match too."""
    if not torch.equal(together.isfinite(), alone.isfinite()):
        raise LaneUnsupported("lanes and single evaluations differ in which losses are finite")
    fine = together.isfinite()
    error = (together - alone)[fine].abs()
    spread = (alone - alone.mean(0)).abs().masked_fill(~fine, 0).amax()
    rounding = 64 * torch.finfo(dtype).eps * (1 + alone[fine].abs())
    if bool((error > torch.maximum(rounding, 0.02 * spread)).any()):
        raise LaneUnsupported(f"lanes differ from single evaluations by {float(error.max()):.3g} on the first batch")


def batch_rows(batch: Any) -> int | None:
    """The number of examples of a batch: the first dimension that all its tensors share, or None."""
    if not isinstance(batch, Mapping):
        return None
    sizes = {value.shape[0] if value.dim() else -1 for value in batch.values() if isinstance(value, Tensor)}
    return sizes.pop() if len(sizes) == 1 and -1 not in sizes else None


def repeat(batch: Mapping[str, Any], lanes: int) -> dict[str, Any]:
    """The batch with every tensor stacked `lanes` times along dim 0."""
    return {
        key: value.repeat(lanes, *[1] * (value.dim() - 1)) if isinstance(value, Tensor) else value
        for key, value in batch.items()
    }
