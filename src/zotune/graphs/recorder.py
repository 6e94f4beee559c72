"""Which forwards are recorded, and when a recording may stand for one.

A recording is of one way to evaluate: these points, this objective, a batch of these shapes, the same updates waiting.
The run's first batch decides whether there are any: forwards are recorded, played with other rows, other directions
and other waiting updates, and compared with forwards that were run. From then on each new shape is recorded when it
first comes, and played at once, so that a run and its continuation compute alike.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, final

import torch
from torch import Tensor

from zotune.agreement import disagreement, widest_rounding
from zotune.direction import Direction, Factors
from zotune.distributed.sharded import no_gradient
from zotune.errors import ConfigError
from zotune.estimate import Estimator, Point
from zotune.evaluator import Evaluator, Seen, fetched
from zotune.graphs.graph import CudaGraph, Graph, Unrecordable
from zotune.graphs.held import Held, copy_all
from zotune.lazy import Lanes, LaneUnsupported
from zotune.machine import is_fault
from zotune.noise import Key
from zotune.objective.base import Objective as Own
from zotune.reuse import Below
from zotune.scorer import Objective, Within, nothing

logger = logging.getLogger(__name__)

# Recordings that are kept; of more shapes the ones that were played longest ago go.
_MOST = 128


@final
@dataclass(frozen=True)
class Recording:
    """A graph and the places that it reads and writes."""

    graph: Graph
    held: Held
    batch: Mapping[str, Any]
    pending: Mapping[str, Factors]
    below: Sequence[Tensor]
    shape: torch.Size  # of the losses: (points, examples)
    out: Tensor  # the losses, one behind the other; behind them whether they are doubted, where choices were planned
    objective: Objective  # kept, so that no other one gets its id

    def play(self, batch: Any, keys: Sequence[Key], pending: Mapping[str, Factors], within: Within) -> Seen:
        """The losses of another batch at other keys, in tensors of their own."""
        self.held.fill(keys)
        places = [value for value in self.batch.values() if isinstance(value, Tensor)] + list(self.below)
        values = [batch[name] for name, value in self.batch.items() if isinstance(value, Tensor)] + _below(within)
        for name, factors in self.pending.items():
            places.append(factors.u)
            values.append(pending[name].u)
            if not self.held.shares(name, factors):
                places.append(factors.v)
                values.append(pending[name].v)
        copy_all(places, values)
        self.graph.play()
        out = self.out.clone()
        count = self.shape.numel()
        return Seen(out[:count].view(self.shape), out[count] > 0 if len(out) > count else None)


@final
class Recorder:
    """The recordings of one evaluator's forwards. `make` gives a new graph.

    reason: why nothing is recorded; empty where forwards are, once `prove` was called.
    """

    def __init__(self, evaluator: Evaluator, make: Callable[[], Graph]) -> None:
        self._evaluator, self._perturber, self._make = evaluator, evaluator.perturber, make
        self._known: OrderedDict[Hashable, Recording | None] = OrderedDict()
        self.reason = "not proven"

    # --- may a recording stand for a forward? --------------------------------------------------------------------

    def prove(self, objective: Objective, batch: Any, points: Sequence[Point], within: Within) -> None:
        """Decide, once, with the run's first batch on the base weights: sets `reason`."""
        if self.reason != "not proven":
            return
        perturber = self._perturber
        later = [replace(point, key=replace(point.key, step=point.key.step + 1)) for point in points]
        try:
            if not points or points[0].each:
                raise Unrecordable("examples have directions of their own")
            if perturber.direction.reads_inputs or perturber.direction.everywhere() is not perturber.direction:
                raise Unrecordable("what is drawn depends on more than the step's key")
            if self._signature(objective, batch, points, within) is None:
                raise Unrecordable("the batch or what is around its forwards is not made of tensors")
            self._compare(objective, batch, points, within)
            turned = {key: v.roll(1, 0) if isinstance(v, Tensor) and v.dim() else v for key, v in batch.items()}
            other = within.of(turned) if isinstance(within, Below) else within
            self._compare(objective, turned, later, other)
            for key in (points[0].key, later[0].key) if perturber.direction.window() > 1 else ():
                with self._waiting(self._summed(key, points[0].scale)):
                    self._compare(objective, batch, points, within)
        except (Unrecordable, LaneUnsupported, RuntimeError) as error:
            if is_fault(error):
                raise
            self.reason = str(error).strip().splitlines()[0]
            self._known.clear()
            logger.info("no forwards are recorded: %s", self.reason)
        else:
            self.reason = ""

    def _compare(self, objective: Objective, batch: Any, points: Sequence[Point], within: Within) -> None:
        """Raises Unrecordable unless a played forward gives what one that is run gives."""
        seen = self._played(objective, batch, points, within)
        if seen is None:
            raise Unrecordable(self.reason)
        found, doubted = fetched([seen])
        expected = self._run(objective, batch, points, within, self._perturber.direction)[0].to("cpu", torch.float64)
        off = disagreement(found, expected, widest_rounding(self._perturber))
        if off or doubted:
            raise Unrecordable(f"a played forward differs by {off:.3g} from one that is run")

    def _summed(self, key: Key, scale: float) -> dict[str, Factors]:
        """Updates as they may wait to be folded."""
        direction = self._perturber.direction
        found = {t.name: direction.combined(t, [(key, scale)]) for t in self._perturber.targets()}
        return {name: factors for name, factors in found.items() if factors is not None}

    # --- recording and playing -----------------------------------------------------------------------------------

    def losses(self, objective: Objective, batch: Any, points: Sequence[Point], within: Within) -> Seen | None:
        """As the evaluator's, from a recording; None where there is none of such a forward."""
        return None if self.reason else self._played(objective, batch, points, within)

    def _played(self, objective: Objective, batch: Any, points: Sequence[Point], within: Within) -> Seen | None:
        signature = self._signature(objective, batch, points, within)
        if signature is None:
            return None
        with no_gradient(self._perturber.model):
            if signature not in self._known:
                self._known[signature] = self._record(objective, batch, points, within)
                if len(self._known) > _MOST:
                    self._known.popitem(last=False)
            self._known.move_to_end(signature)
            recording = self._known[signature]
            keys = list(dict.fromkeys(point.key for point in points))
            return None if recording is None else recording.play(batch, keys, self._perturber.pending, within)

    def _record(self, objective: Objective, batch: Any, points: Sequence[Point], within: Within) -> Recording | None:
        """A recording of this forward, or None where it cannot be recorded: the same answer whenever it is asked."""
        perturber = self._perturber
        keys = list(dict.fromkeys(point.key for point in points))
        try:
            held = Held(perturber.direction, perturber.targets(), keys)
            places = {name: value.clone() if isinstance(value, Tensor) else value for name, value in batch.items()}
            below = [tensor.clone() for tensor in _below(within)]
            around = within.taking(within.captured.holding(below)) if isinstance(within, Below) else within
            with self._waiting(held.waiting(perturber.pending)) as pending:
                held.fill(keys)
                # Run once to know its choices by values, and whether it goes the way that was proven.
                losses, lanes = self._run(objective, places, points, around, held)
                self._evaluator.check(lanes)
                graph, plan = self._make(), lanes.choices

                def run() -> Tensor:
                    found, again = self._run(objective, places, points, around, held, plan, recording=True)
                    doubted = again.doubted()
                    flat = found.flatten()
                    return flat if doubted is None else torch.cat([flat, doubted.to(flat.dtype).reshape(1)])

                out = graph.record(run)
            return Recording(graph, held, places, pending, below, losses.shape, out, objective)
        except (Unrecordable, LaneUnsupported, RuntimeError) as error:
            if is_fault(error):
                raise
            if self.reason:
                raise
            logger.info("forwards of one shape are not recorded: %s", str(error).strip().splitlines()[0])
            return None

    def _run(
        self,
        objective: Objective,
        batch: Any,
        points: Sequence[Point],
        within: Within,
        direction: Direction,
        plan: Sequence[bool] = (),
        recording: bool = False,
    ) -> tuple[Tensor, Lanes]:
        if len(points) > 1:
            return self._evaluator.stacked(objective, batch, points, within, direction, plan, recording=recording)
        return self._evaluator.alone(objective, batch, points[0], within, direction, recording=recording)

    @contextmanager
    def _waiting(self, pending: dict[str, Factors]) -> Iterator[dict[str, Factors]]:
        """Within the context these updates are the ones that wait to be folded."""
        saved, self._perturber.pending = self._perturber.pending, pending
        try:
            yield pending
        finally:
            self._perturber.pending = saved

    def _signature(self, objective: Objective, batch: Any, points: Sequence[Point], within: Within) -> Hashable | None:
        """What makes a forward another recording; None for one that cannot be recorded."""
        if not isinstance(batch, Mapping) or not (within is nothing or isinstance(within, Below)):
            return None
        if not getattr(objective, "one_forward", True) or points[0].each:
            return None
        shapes: list[Hashable] = []
        for name, value in batch.items():
            if isinstance(value, Tensor):
                shapes.append((name, value.shape, value.dtype))
            elif name != "step" or not isinstance(objective, Own):  # which says what a draw of words is seeded with
                if not isinstance(value, Hashable):
                    return None
                shapes.append((name, value))
        numbers = {key: i for i, key in enumerate(dict.fromkeys(point.key for point in points))}
        where = tuple((numbers[point.key], point.scale) for point in points)
        first, pending = points[0].key, self._perturber.pending
        waiting = tuple((name, f.u.shape, f.basis is None) for name, f in pending.items())
        shared = None
        if pending:
            name = next(iter(pending))
            own = self._perturber.direction.factors(self._perturber.target(name), first)
            shared = own is not None and own.basis == pending[name].basis
        below = tuple((tensor.shape, tensor.dtype) for tensor in _below(within))
        return id(objective), tuple(shapes), where, waiting, shared, below


def recorder_for(
    evaluator: Evaluator, mode: Literal["auto", "on", "off"], estimator: Estimator, seed: int, elsewhere: bool
) -> Recorder | None:
    """A recorder of CUDA graphs where they can serve, or None. `elsewhere`: whether weights come from elsewhere.

    Raises ConfigError for "on" where they cannot.
    """
    if mode == "off":
        return None
    model = evaluator.perturber.model
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    radii = {frozenset(point.scale for point in estimator.points(seed, step)) for step in range(4)}
    reason = ""
    if len(devices) != 1 or any(device.type != "cuda" for device in devices):
        reason = "the model is not on one GPU"
    elif elsewhere or evaluator.perturber.sharding.somewhere or any(hasattr(m, "_hf_hook") for m in model.modules()):
        reason = "weights come to the GPU in the forward"
    elif len(radii) > 1:
        reason = "the radius is another one in each step"
    if reason and mode == "on":
        raise ConfigError(f"graphs is on, but {reason}. Remedy: graphs auto.")
    if reason:
        return None
    with torch.cuda.device(devices.pop()):
        pool, stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    return Recorder(evaluator, lambda: CudaGraph(pool, stream))


def _below(within: Within) -> list[Tensor]:
    return within.captured.tensors() if isinstance(within, Below) else []
