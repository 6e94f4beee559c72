"""What a run's forwards need, metered on the meta device: memory by term and, on a measured machine, seconds.

The run's own code runs on a model without weights: lanes, reuse, objective, batches. `meter.py` sees what that would
allocate and compute.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from zotune.calibrate import Machine, kept
from zotune.config import TrainConfig
from zotune.distributed.work import Work
from zotune.engines.parts import Sizes, parts, sizes
from zotune.kernels import fast_for
from zotune.load import NAMES, device_of, meta_model, stored
from zotune.meter import Meter, Priced
from zotune.objective.base import Batch, Example, to_device
from zotune.optimizer import ZerothOrder
from zotune.reuse import Reuse
from zotune.session import Session
from zotune.stacked import repeat
from zotune.watch import size

_META = torch.device("meta")
_LENGTHS = 3  # batches that are metered for the time; between their lengths it is interpolated
_SAID = {"runtime": "libraries", "weights": "weights", "activations": "activations", "reused": "kept activations",
         "state": "the method's state"}  # fmt: skip


@final
@dataclass
class Cost:
    """Of some forwards on one batch. peak: bytes beyond the weights; seconds: on the calibrated machine."""

    peak: int
    seconds: float


def foreseen(session: Session, **places: Any) -> dict[str, int] | None:
    """Bytes by term, and their peak, of a session that has begun; None where a forward on meta tells nothing.

    `places`: options in place of its own that a run may go on with, such as rows_per_forward. `runtime` lacks what
    libraries take in their first step, as long as `zotune plan` has not measured the machine.
    """
    if session.server is not None:  # what a server takes is not known
        return None
    shadow = copy.copy(session)
    group, shadow.group, shadow.offload, shadow.pool = session.group, None, None, None
    shadow.config = dataclasses.replace(session.config, **places)
    try:
        shadow.model = meta_model(session.config)
        optimizer = shadow.build()
        c = shadow.config
        machine = kept(session.device, dtype_of(shadow.model), c.method, c.method_args)
        work = Work() if group is None else Work(group.size, c.parallel or "data")
        forecast = Forecast(shadow, optimizer, machine, work)
        return forecast.memory(device_of(session.config))
    except Exception:  # a model or a method that must read its weights: a run is not stopped for its forecast
        return None


def said(terms: dict[str, int], most: int = 3) -> str:
    """The peak and its largest terms in words: about 1.4 GB (weights 538 MB, ...)."""
    largest = sorted((name for name in _SAID if terms[name]), key=lambda name: -terms[name])[:most]
    return f"about {size(terms['peak'])} ({', '.join(f'{_SAID[name]} {size(terms[name])}' for name in largest)})"


@final
class Forecast:
    """The metered forwards of a session whose model has no weights.

    `work`: what each of several processes does. Without a `machine` nothing is known of seconds, and memory lacks what
    its libraries take in the first step.
    """

    def __init__(
        self, session: Session, optimizer: ZerothOrder, machine: Machine | None, work: Work | None = None
    ) -> None:
        self.session, self.optimizer, self.machine, self.work = session, optimizer, machine, work or Work()
        self.priced = Priced(optimizer.direction)
        optimizer.perturber.direction, optimizer.perturber.fast = self.priced, False
        self.offload = None if session.config.offload is None else sizes(session.model, parts(session.model))
        self.points = optimizer.estimator.points(session.config.seed, 0)
        # What one forward holds: a unit, or a part of it.
        self.parts = [part for unit in range(len(session.units)) for part in session.parts(unit)]
        self.reuse = Reuse(optimizer.perturber, session.config.reuse_mb << 20, dry=True)
        self.evals_reuse = session.measure.one_forward  # as in `Session.evaluate`
        if session.objective.one_forward or session.objective.goes_on:
            with Meter():
                self.reuse.locate(session.objective, self.batch(0), self.points[0])
        self.lanes = self._lanes()

    def batch(self, part: int) -> Batch:
        """One forward of training, without its values."""
        examples = [self.session.examples[i] for i in self.parts[part]]
        return to_device(self.session.objective.collate(examples), _META)

    def memory(self, device: torch.device) -> dict[str, int]:
        """Bytes by term, and their peak: the greater of loading and running."""
        config, model = self.session.config, self.session.model
        sizes = _sizes(model)
        weights = self.work.weights(model, sizes) if self.offload is None else _held(config, self.offload, device)
        in_files, dtypes = stored(config)
        longest = max(range(len(self.parts)), key=self._width)
        running = max(self.step(longest).peak, self.capture(self.batch(longest)).peak)
        evals = self._eval_batches()
        if evals:  # the largest one
            batch = to_device(self.session.objective.collate(evals[0]), _META)
            captured = self.capture(batch).peak if self.evals_reuse else 0
            running = max(running, captured, self.evaluation(0, batch).peak)
        kept = self._kept()[0]
        scope = sum(target.data.numel() for target in self.optimizer.perturber.targets())
        working = 0 if self.machine is None else self.machine.working
        if self.machine is not None and fast_for(scope, device):
            working = self.machine.working_fast
        state = 4 * self.optimizer.direction.state_elements(self.optimizer.perturber.targets())
        converted = 0 if dtypes <= {NAMES.get(dtype_of(model))} or device.type != "cpu" else in_files
        held, working = (self.session.held_bytes, working) if device.type == "cpu" else (0, 0)
        terms = {"runtime": held + working, "weights": weights, "activations": running, "reused": kept, "state": state}
        # Loading is over before the first forward: what that needs for itself is not there yet. Each process reads a
        # whole model into the memory of the CPU, and shares it out from there.
        if self.work.sharded and device.type == "cpu":
            converted += max(0, sum(sizes.values()) - weights)
        peak = held + weights + max(working + running + kept + state, converted)
        return {**terms, "loading": converted, "peak": peak}

    def seconds(self) -> tuple[float, float, float, float]:
        """Of a step; of the blocks that all steps run beside it, once per batch or, where that is not kept, each time;
        of an evaluation; and of what only the first one does.
        """
        if self.machine is None:
            raise ValueError("seconds are those of a machine that was measured")
        _, training, held_out = self._kept()
        parts = sorted(range(len(self.parts)), key=self._width)
        chosen = _spread(parts)
        widths = [self._width(part) for part in parts]
        steps = _sum_over(widths, {self._width(part): self.step(part).seconds for part in chosen})
        below = _sum_over(widths, {self._width(part): self.capture(self.batch(part)).seconds for part in chosen})
        epochs = self._epochs()
        below *= min(epochs, 1.0) + max(epochs - 1.0, 0.0) * (1.0 - training)
        scope = sum(target.data.numel() for target in self.optimizer.perturber.targets())
        units = self.session.units_per_step
        share = self.work.forwards(units, len(self.points), 2 if self.lanes else 1)
        own = scope / self.work.count if self.work.sharded else scope
        step = steps / len(self.session.units) * units * share + own * self.machine.update * self._updates() / 2
        batches = self._eval_batches()
        widths = [self._tokens(examples) for examples in batches]
        seen, captured = {}, {}
        for index in _spread(range(len(batches))):
            batch = to_device(self.session.objective.collate(batches[index]), _META)
            seen[widths[index]] = self.evaluation(index, batch).seconds
            captured[widths[index]] = self.capture(batch).seconds if self.evals_reuse else 0.0
        first = _sum_over(widths, captured)
        return step, below, _sum_over(widths, seen) + first * (1.0 - held_out), first * held_out

    def step(self, part: int) -> Cost:
        """The evaluations of one part at every point of a step."""
        batch = self.batch(part)
        within = self.reuse.within(self.session.objective, batch, part)
        size = 2 if self.lanes else 1
        groups = [self.points[i : i + size] for i in range(0, len(self.points), size)]
        costs = []
        for group in groups:
            with Meter(), within(1):  # the capture is not part of the step: it was made before
                pass
            stacked = batch if len(group) == 1 else repeat(batch, len(group))
            rows = len(self.parts[part])
            before = self.priced.drawn

            def at(group: Any = group, rows: int = rows) -> AbstractContextManager[Any]:
                return self.optimizer.perturber.at(*group, rows=rows)

            cost = self.forward(stacked, at, within(len(group)))
            drawn = self.priced.drawn - before
            costs.append(Cost(cost.peak, cost.seconds + drawn * (self.machine.probe if self.machine else 0.0)))
        return Cost(max(cost.peak for cost in costs), sum(cost.seconds for cost in costs))

    def forward(self, batch: Batch, at: Callable[[], AbstractContextManager[Any]], within: Any = None) -> Cost:
        """One forward of the objective."""
        with torch.inference_mode(), at(), within or nullcontext(), Meter() as meter:

            def times(count: float) -> None:
                meter.times = self.priced.times = count

            self.session.objective.rehearse(self.session.model, batch, times)
            self.priced.times = 1.0
        return Cost(meter.peak, self._price(meter))

    def evaluation(self, index: int, batch: Batch) -> Cost:
        """The forward of a batch of held-out rows; blocks below the scope were run before."""
        if not self.evals_reuse:
            return self.forward(batch, nullcontext)
        within = self.reuse.within(self.session.objective, batch, ("eval", index))
        with Meter(), within(1):
            pass
        return self.forward(batch, nullcontext, within(1))

    def capture(self, batch: Batch) -> Cost:
        """The blocks below the scope, run once; nothing where there are none."""
        if not self.reuse.depth:
            return Cost(0, 0.0)
        with Meter() as meter:
            self.reuse.capture(self.session.objective, batch)
        return Cost(meter.peak, self._price(meter))

    def captured(self, batch: Batch) -> int:
        """Bytes that are kept of a batch."""
        if not self.reuse.depth:
            return 0
        with Meter():
            return self.reuse.capture(self.session.objective, batch).bytes

    def _updates(self) -> int:
        """Evaluations that a step's update draws again: of a point where each example has its own, one for each."""
        rows = self.session.config.batch_size
        return sum(rows if point.each else 1 for point in self.points)

    def _epochs(self) -> float:
        """How often the run's steps go through the rows."""
        return self.session.config.steps * self.session.units_per_step / len(self.session.units)

    def _kept(self) -> tuple[int, float, float]:
        """Bytes of activations that are kept, and the share of the batches that are kept between steps: of those of
        training, and of held-out rows, which come first.
        """
        longest = max(range(len(self.parts)), key=self._width)
        # The output of a block is as large as its batch, and so are keys and values.
        of_longest = self.captured(self.batch(longest))
        per_token = of_longest / self._width(longest)
        held_out = per_token * sum(map(self._tokens, self._eval_batches())) * self.evals_reuse
        training = per_token * sum(map(self._tokens, self._training())) * min(self._epochs(), 1.0)
        first = min(held_out, self.session.config.reuse_mb << 20)
        rest = min(training, (self.session.config.reuse_mb << 20) - first)
        passing = of_longest if rest < training else 0  # held for one step
        return (
            round(first + rest) + passing,
            rest / training if training else 1.0,
            first / held_out if held_out else 1.0,
        )

    def _lanes(self) -> bool:
        """Whether both sides ride in one forward, as far as shapes can tell."""
        if self.session.config.lanes == "off" or len(self.points) < 2 or self.session.objective.one_at_a_time:
            return False
        batch, rows = self.batch(0), len(self.parts[0])
        try:
            with torch.inference_mode(), self.optimizer.perturber.at(*self.points[:2], rows=rows), Meter():
                self.session.objective.rehearse(self.session.model, repeat(batch, 2), lambda count: None)
        except Exception:  # what has no lane rule, or shapes that do not fit: the run too goes one by one then
            return False
        return True

    def _price(self, meter: Meter) -> float:
        if self.machine is None:
            return 0.0
        products = sum(times * self.machine.seconds_of_product(a, b, c) for a, b, c, times in meter.products)
        return products + sum(times * self.machine.seconds_of_pass(moved) for moved, times in meter.passes)

    def _training(self) -> list[list[Example]]:
        return [[self.session.examples[i] for i in part] for part in self.parts]

    def _width(self, part: int) -> int:
        return self._tokens([self.session.examples[i] for i in self.parts[part]])

    def _tokens(self, examples: Sequence[Example]) -> int:
        """Of a batch, padding included."""
        return max(self.session.objective.lengths(examples)) * len(examples)

    def _eval_batches(self) -> list[list[Example]]:
        """Batches of held-out rows as `evaluate` makes them, those with most tokens first: the longest may be few."""
        examples, size = self.session.eval_examples or [], self.session.config.eval_batch_size
        lengths = self.session.objective.lengths(examples) if examples else []
        order = sorted(range(len(examples)), key=lengths.__getitem__)
        batches = [[examples[i] for i in order[start : start + size]] for start in range(0, len(order), size)]
        return sorted(batches, key=self._tokens, reverse=True)


def _held(config: TrainConfig, offload: Sizes, device: torch.device) -> int:
    """Bytes of weights in the memory of the device: on a GPU the next block is there too."""
    if device.type == "cuda":
        return offload.resident + 2 * offload.room
    return offload.resident + offload.room + (offload.streamed if config.offload == "cpu" else 0)


def _sizes(model: nn.Module) -> dict[int, int]:
    """Bytes of parameters and buffers, by id; of an element that is seen many times (a bank's) once."""
    return {id(t): _elements(t) * t.element_size() for t in (*model.parameters(), *model.buffers())}


def _elements(tensor: Tensor) -> int:
    return math.prod(size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)


def dtype_of(model: nn.Module) -> torch.dtype:
    """Of the model's first parameter."""
    return next(parameter.dtype for parameter in model.parameters())


def _spread(items: Sequence[int]) -> list[int]:
    """_LENGTHS of the items: first, last and between."""
    last = len(items) - 1
    return (
        [items[i] for i in sorted({round(k * last / max(_LENGTHS - 1, 1)) for k in range(_LENGTHS)})] if items else []
    )


def _sum_over(widths: Sequence[int], known: dict[int, float]) -> float:
    """The sum of a cost over batches of these widths, interpolated between those that are known."""
    total, points = 0.0, sorted(known)
    for width in widths:
        low = max((point for point in points if point <= width), default=points[0])
        high = min((point for point in points if point >= width), default=points[-1])
        share = 0.0 if low == high else (width - low) / (high - low)
        total += known[low] + (known[high] - known[low]) * share
    return total
