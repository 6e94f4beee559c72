"""ZerothOrder: a `torch.optim.Optimizer` in two phases that knows no method.

`estimate(...)` evaluates and remembers losses; `step()` turns them into probes, records them, and folds them into the
parameters. `step(objective, batch)` and `step(closure)` do both. Micro-batches are several estimates before one step:
losses are collected per example and summed exactly, so the result does not depend on how they were grouped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn

from zotune import kernels
from zotune.carried import collected, handed_back, not_folded
from zotune.closure import as_objective
from zotune.diagnose import first_non_finite, non_finite
from zotune.direction import Direction
from zotune.distributed.sharded import is_part, no_gradient
from zotune.errors import UserError
from zotune.estimate import Estimator, Point, Probe, signal_to_noise
from zotune.evaluator import Evaluator, Mode, refused_lanes
from zotune.groups import decay_groups, given_groups
from zotune.noise import STREAM, STREAM_VERSION, Key
from zotune.perturb import Perturber
from zotune.radius import warn_unfelt
from zotune.records import StepRecord
from zotune.refusals import (
    check_banks,
    check_examples,
    check_folding,
    check_matrices,
    check_module,
    check_offload,
    check_parallel,
    no_example,
    no_inputs,
    warn_alone,
)
from zotune.rule import Rule
from zotune.schedule import scheduled
from zotune.scorer import Objective, Scorer, Within, nothing
from zotune.stacked import batch_rows, spread_out
from zotune.store import store_for
from zotune.updates import Updates

if TYPE_CHECKING:
    from zotune.distributed.sharing import Sharing
    from zotune.engines.offload import Offload


@final
class ZerothOrder(torch.optim.Optimizer):
    """Trains `model` with forward passes only.

    Args:
        model: any `nn.Module`; its parameters may be float64, float32, bfloat16 or float16.
        lr: step size; one value per parameter group, as in torch.
        direction, estimator, rule: the three parts of a method (see `zotune.methods`).
        scope: which parameters are trained (`zotune.scope`), or a list of canonical names.
        params: instead of `scope`, parameter groups as torch takes them: a list of dicts with "params" and, optionally,
            "lr" and "weight_decay".
        weight_decay: decoupled; biases, norms and vectors are left out.
        seed: the run's seed, 0 <= seed < 2**64. Together with the step number it is all the state there is.
        lanes: "auto" evaluates several points per forward where the first batch proves that right, "off" never, "on" or
            raises UserError. `max_lanes` bounds how many points ride in one forward.
        graphs: "auto" records forwards as CUDA graphs and plays them, where the model lies whole on one GPU and the
            first batch proves that right; "on" raises ConfigError where the model does not; "off" never. The objective
            must then compute from the model and the batch's tensors alone.
        coverage: raise CoverageError when a parameter in scope is not used by a forward pass.
        halve_eps: a step that is left out (`leave_out`) halves eps for the steps to come.
        blocks: "cycle", "random:SHARE" or "atoms": a step perturbs and updates these parts alone (`zotune.schedule`).
        fold_every: low-rank updates are summed for so many steps before they are written into the weights (a divisor of
            the direction's window). Then `model` alone is behind: `settled()` or `fold()` before anything reads it.
        parallel: the processes that share the work of each step (`zotune.Parallel`, `zotune.OwnBatches`).
        offload: streams the model's blocks to the device (`zotune.engines.offload`). Updates wait for their block:
            `weights()` before anything but a forward reads the model.
        method, arguments: what the journal's header says of the method; factories fill them in.

    Raises ConfigError for a scope that selects nothing, UserError for parameters that cannot be trained.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float,
        direction: Direction,
        estimator: Estimator,
        rule: Rule,
        scope: str | Sequence[str] = "full",
        params: Iterable[dict[str, Any]] | None = None,
        weight_decay: float = 0.0,
        seed: int = 0,
        lanes: Mode = "auto",
        max_lanes: int = 2,
        graphs: Mode = "off",
        coverage: bool = True,
        blocks: str | None = None,
        fold_every: int = 1,
        halve_eps: bool = False,
        parallel: Sharing | None = None,
        offload: Offload | None = None,
        method: str = "custom",
        arguments: dict[str, Any] | None = None,
    ) -> None:
        check_module(model)
        if not 0 <= seed < 2**64:
            raise UserError(f"seed must be at least 0 and below 2**64, got {seed}. Remedy: such as 0.")
        if not lr >= 0 or not math.isfinite(lr):
            raise UserError(f"lr must be a finite number >= 0, got {lr}. Remedy: MeZO's full tuning starts near 1e-6.")
        self.model, self.seed, self.method, self.arguments = model, seed, method, dict(arguments or {})
        groups = given_groups(model, params) if params is not None else decay_groups(model, scope, weight_decay)
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})
        self.names = [name for group in self.param_groups for name in group["names"]]
        if blocks is not None:
            direction = scheduled(direction, blocks, model, self.names, rule.by_factors)
        self.direction, self.estimator, self.rule, self.blocks = direction, estimator, rule, blocks
        self.offload = offload
        if offload is not None:
            check_offload(method, direction, rule, parallel)
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        device = parameters[0].device if offload is None else offload.device
        fast = kernels.fast_for(sum(parameter.numel() for parameter in parameters), device)
        self.perturber = Perturber(model, self.names, direction, fast, None if offload is None else offload.away)
        check_matrices(method, direction, self.perturber.targets())
        self.perturber.sharding.refuse_unless(direction.in_parts and rule.in_parts, method)
        self.share(parallel)
        lanes = lanes if parallel is None else parallel.lanes(lanes)
        in_step = parallel is not None and parallel.in_step
        evaluator = Evaluator(self.perturber, lanes, max_lanes, coverage, in_step)
        if graphs != "off":
            from zotune.graphs.recorder import recorder_for

            evaluator.recorder = recorder_for(evaluator, graphs, estimator, seed, offload is not None)
        self.evaluator: Scorer = evaluator
        for target in self.perturber.targets():
            store_for(target.data.dtype)
        targets = self.perturber.targets()
        direction.prepare(targets if offload is None else offload.shown(targets))
        check_folding(fold_every, direction, self.param_groups)
        check_banks(self.perturber, direction, self.param_groups, method, seed)
        self._updates = Updates(self.perturber, direction, rule, offload, method)
        self.fold_every = fold_every
        self.halve_eps, self.halvings = halve_eps, 0
        self.steps = 0  # steps taken
        self.signal_to_noise = math.nan  # of the last step's first two points
        self.record: Callable[[StepRecord], None] | None = None  # called before each update, for a journal
        self._losses: list[list[tuple[float, float]]] = []  # for each point, (loss, weight) of each example
        self._last: list[Probe] = []
        self._weightless = False  # whether the step was given a micro-batch that counts nothing
        self._looked = -1  # the step whose layer inputs the direction has seen
        self._batch: tuple[Objective, Any] | None = None
        self._begun: tuple[Objective, Any, Within] | None = None  # the first micro-batch of a step that others share

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """torch's, for the constructor alone. Raises UserError afterwards: directions and records are of the groups
        that were there.
        """
        if hasattr(self, "names"):
            raise UserError(
                f"{self.method} trains the parameters that it was built with. Remedy: build a new optimizer, with all "
                "groups in params=."
            )
        super().add_param_group(param_group)

    def share(self, parallel: Sharing | None) -> None:
        """Share the work of the steps to come with other processes; None: with none. Raises ConfigError where this
        method or this model cannot be shared in that way.
        """
        check_parallel(self.perturber, parallel, self.method, self.estimator.per_example)
        self.parallel = parallel

    def __getstate__(self) -> dict[str, Any]:
        """Raises UserError: copy and pickle would take the groups along, and neither the model nor the method."""
        raise UserError(
            "an optimizer of zotune cannot be copied: it belongs to its model. Remedy: build it on the copy of the "
            "model, and load_state_dict(optimizer.state_dict())."
        )

    # --- first phase ---------------------------------------------------------------------------------------------

    def estimate(
        self,
        objective: Callable[..., Any],
        batch: Any = None,
        *,
        weight: float = 1.0,
        within: Within = nothing,
    ) -> float:
        """Evaluate one micro-batch at every point of the step; returns its mean loss over the points.

        `objective(model, batch)` returns per-example losses (B,) or a scalar; without a batch it is a closure `()`.
        A scalar counts as one example of weight `weight`; with weight 0 nothing is evaluated and the mean is NaN.
        `within(lanes)` is entered around every forward.
        Raises NonFiniteLoss, after which the step's estimates are dropped, and CoverageError.
        """
        if not 0 <= weight < math.inf:
            raise UserError(f"weight must be a finite number >= 0, got {weight}. Remedy: the examples behind the loss.")
        if not weight and not self.estimator.per_example:
            self._weightless = True
            return math.nan
        if self.parallel is None:
            return self._estimate(objective, batch, weight, within)
        with self.parallel.deferring():  # what fails is raised by `step`, in all processes
            return self._estimate(objective, batch, weight, within)
        return math.nan

    def _estimate(
        self,
        objective: Callable[..., Any],
        batch: Any,
        weight: float,
        within: Within,
    ) -> float:
        if batch_rows(batch) == 0:
            raise no_example()
        if batch is None and self.evaluator.must:
            raise refused_lanes("a closure holds its batch, so nothing can be stacked")
        points, parallel = self.estimator.points(self.seed, self.steps), self.parallel
        plain: Objective = as_objective(objective) if batch is None else objective
        self._batch = (plain, batch)
        begun = bool(self._losses) if parallel is None else bool(parallel.units)
        if parallel is not None and not begun:
            self._begun = plain, batch, within
        # The forward that shows the inputs is at the centre: its losses serve an estimator that evaluates there.
        centre = self.look(plain, batch, within) if self.direction.reads_inputs and not begun else None
        if self.estimator.per_example:
            check_examples(self.method, batch, weight)
            first = parallel.examples if parallel else len(self._losses[0]) if self._losses else 0
            points = [replace(p, key=replace(p.key, query=p.key.query + first)) if p.each else p for p in points]
        if parallel is not None:
            if batch is not None:  # all decide alike, before they part
                left = points if centre is None else [point for point in points if point.scale]
                self.evaluator.decide(objective, batch, left, within)
            points = parallel.deal(points, batch, weight, centre is not None, self.evaluator.max_lanes)
            if not points:
                return math.nan
        left = points if centre is None else [point for point in points if point.scale]
        losses = self._evaluated(plain, batch, left, within)
        if not losses.numel():
            raise no_example()
        if centre is not None:
            rows = iter(losses)
            losses = torch.stack([next(rows) if point.scale else centre for point in points])
        if not bool(losses.isfinite().all()):
            self._refuse(losses, points)
        if parallel is not None:
            parallel.keep(losses.tolist())
            return float(losses.mean())
        if not self._losses:
            self._losses = [[] for _ in points]
        for seen, row in zip(self._losses, losses.tolist(), strict=True):
            seen.extend((loss, weight) for loss in row)
        return float(losses.mean())

    def look(
        self,
        objective: Objective,
        batch: Any,
        within: Within = nothing,
    ) -> Tensor:
        """Show the direction the inputs of the layers on a batch, at the unperturbed weights: one forward.

        For directions that read them; `estimate` does it by itself, a replay must be given the step's first batch.
        Returns the losses there, (examples,) float64 on the CPU. Raises ConfigError where no matrix in scope shows any.
        """
        key = self._key()
        with no_gradient(self.model), self.perturber.at(Point(key, 0.0)), within(1):
            with self.perturber.watched(key) as inputs:
                losses = objective(self.model, batch)
        self.evaluator.forwards += 1
        if not inputs.shown:
            raise no_inputs(self.method, self.names)
        self._looked = self.steps
        return losses.detach().reshape(-1).to("cpu", torch.float64)

    def _evaluated(self, objective: Objective, batch: Any, points: Sequence[Point], within: Within) -> Tensor:
        """Losses at points, (points, examples) float64 on the CPU."""
        if batch is not None:
            return self.evaluator.losses(objective, batch, points, within)
        return torch.cat([self._alone(objective, point, within) for point in points])

    def _alone(self, objective: Objective, point: Point, within: Within) -> Tensor:
        # A closure holds its batch, so nothing can be stacked: always one point per forward.
        with torch.no_grad(), self.perturber.at(point) as lanes, within(1):
            loss = objective(self.model, None)
        self.evaluator.forwards += 1
        if self.evaluator.coverage:
            self.perturber.check_coverage(lanes)
        return loss.detach().reshape(1, -1).to("cpu", torch.float64)

    def _refuse(self, losses: Tensor, points: Sequence[Point]) -> None:
        row, example = (~losses.isfinite()).nonzero()[0].tolist()
        point = points[row]
        point = spread_out(point, losses.shape[1])[example] if point.each else point
        self._losses, self._weightless = [], False
        found = None
        if not self.perturber.sharding:  # there it would take all processes to look
            assert self._batch is not None
            plain, batch = self._batch
            with torch.no_grad(), self.perturber.at(point):
                found = first_non_finite(self.model, lambda: plain(self.model, batch))
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        raise non_finite(losses[row, example].item(), self.steps, point.scale, parameters, found)

    # --- second phase --------------------------------------------------------------------------------------------

    def step(self, closure: Any = None, batch: Any = None) -> float | None:  # type: ignore[override]
        """Apply the collected estimates; `step(closure)` and `step(objective, batch)` estimate first.

        Returns the mean loss over the step's points. Raises UserError when there is nothing to apply. A step whose
        micro-batches all have weight 0 is left out; its mean is NaN.
        """
        if closure is not None:
            rows = batch_rows(batch)
            if rows and not self._losses and self.parallel is None:  # all that the step will have
                self.estimator.check_examples(rows)
            self.estimate(closure, batch)
        if not self.steps and self.parallel is None:
            warn_alone(self.method)
        if self.parallel is not None:
            if self.parallel.owes_forward():
                assert self._begun is not None
                with self.parallel.deferring():
                    plain, rows, within = self._begun
                    self._evaluated(plain, rows, self.estimator.points(self.seed, self.steps), within)
            self._losses = self.parallel.gather(self.steps, self._compared)
        if not self._losses and self._weightless:
            return self._pass_over()
        if not self._losses:
            raise UserError(
                "step() found no estimate. Remedy: call estimate(objective, batch) first, or step(objective, batch)."
            )
        losses = self._reduced()
        if not self.steps and not self.perturber.sharding and self.offload is None:  # where all weights are at hand
            warn_unfelt(self.perturber.targets(), self.direction, self.estimator.points(self.seed, self.steps))
        probes = self.estimator.probes(self.seed, self.steps, losses)  # what refuses does so before anything is written
        first, *others = ([loss for loss, _ in seen] for seen in self._losses[:2])
        self.signal_to_noise = signal_to_noise(first, others[0]) if others else math.nan
        self._losses, self._weightless = [], False
        record = self._recorded(losses)
        self._apply(record, probes)
        return math.fsum(losses) / len(losses)

    def _pass_over(self) -> float:
        """End a step without an example that counts; the journal says that it was left out."""
        self._last, self._weightless, self.signal_to_noise = [], False, math.nan
        self._recorded((math.nan,))
        self.leave_out()
        return math.nan

    def _recorded(self, losses: tuple[float, ...]) -> StepRecord:
        record = StepRecord(self.steps, tuple(float(group["lr"]) for group in self.param_groups), losses)
        if self.record is not None:
            self.record(record)
        return record

    def _compared(self) -> dict[str, Tensor]:
        """What must be equal in all processes between two steps."""
        return {**{name: t for name, t in self._updates.named().items() if not is_part(t)}, **self.carried()}

    def _reduced(self) -> tuple[float, ...]:
        if self.estimator.per_example:
            return tuple(loss for seen in self._losses for loss, _ in seen)
        return tuple(_mean(seen) for seen in self._losses)

    def replay(self, record: StepRecord) -> None:
        """Apply a recorded step: the same code as `step()`, with the recorded losses and learning rates.

        Raises UserError for a record that is not the next step of this run, and for a method whose directions depend on
        the data unless `look` was called for the step.
        """
        if record.step != self.steps or len(record.lrs) != len(self.param_groups):
            raise UserError(
                f"record of step {record.step} does not follow step {self.steps} of this run. Remedy: replay in order."
            )
        if self.direction.reads_inputs and self._looked != self.steps:
            raise UserError(
                f"{self.method} draws its directions from the inputs of the layers, so a journal alone cannot rebuild "
                "its weights. Remedy: `zotune replay RUN` or `zotune export RUN`, which read the run's rows too."
            )
        self._apply(record, self.estimator.probes(self.seed, record.step, record.losses))

    def _apply(self, record: StepRecord, probes: list[Probe]) -> None:
        self._last = probes
        pairs = zip(self.param_groups, record.lrs, strict=True)
        rates = [(lr, float(group["weight_decay"])) for group, lr in pairs for _ in group["params"]]
        self._updates.apply(self._key(), probes, rates, wait=self.fold_every > 1)
        self.estimator.observe(self.seed, record.step, record.losses)
        self.skip()

    def skip(self) -> None:
        """End a step: also one that was left out, whose number must not be used again."""
        self.steps += 1
        if self.steps % self.fold_every == 0:
            self.fold()

    def leave_out(self) -> None:
        """End a step without an update; with `halve_eps` the radius is halved from the next one on."""
        if self.halve_eps:
            self._halve()
        self.skip()

    def _halve(self) -> None:
        self.estimator.halve()
        self.halvings += 1

    def fold_in_windows(self, fold_every: int | None = None) -> None:
        """Set `fold_every`; without a number to the direction's whole window. Raises ConfigError as the constructor."""
        every = self.direction.window() if fold_every is None else fold_every
        check_folding(every, self.direction, self.param_groups)
        self.fold_every = every

    def fold(self) -> None:
        """Write the low-rank updates that are still pending into the weights (or banks)."""
        self._updates.fold(Key(self.seed, self.steps - 1))

    def settled(self) -> AbstractContextManager[None]:
        """Within the context the model computes with its present weights, pending updates included; nothing is written.

        To read the weights themselves call `fold`, which rounds: when it is called is part of a run's course.
        """
        return self._updates.settled(self._key())

    def weights(self) -> dict[str, Tensor]:
        """What is trained by name, to read and to write: the parameters, and the factors of those kept in a bank.

        Pending updates are folded, blocks that were away are settled.
        """
        self.fold()
        self._updates.settle()
        return self._updates.named()

    def put(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `weights` gave; of a sharded model each process takes its own part."""
        self.weights()  # nothing may be waiting to be added to it
        self._updates.put(tensors)

    def _key(self) -> Key:
        return Key(self.seed, self.steps)

    # --- what can be asked ---------------------------------------------------------------------------------------

    @property
    def probes(self) -> list[Probe]:
        """The gradient estimate: of the estimates so far, or of the last step when there are none."""
        if not self._losses:
            return self._last
        return self.estimator.probes(self.seed, self.steps, self._reduced())

    def header(self) -> dict[str, Any]:
        """What a journal must know to rebuild this optimizer on the base model."""
        parameters = [
            {"name": t.name, "shape": list(t.data.shape), "dtype": str(t.data.dtype).removeprefix("torch.")}
            for t in self.perturber.targets()
        ]
        groups = [{"names": group["names"], "weight_decay": group["weight_decay"]} for group in self.param_groups]
        stream = {"name": STREAM, "version": STREAM_VERSION}
        return {
            "method": self.method,
            "arguments": self.arguments,
            "seed": self.seed,
            "stream": stream,
            "fold_every": self.fold_every,
            "blocks": self.blocks,
            "parameters": parameters,
            "groups": groups,
            **({"halve_eps": True} if self.halve_eps else {}),
        }

    def carried(self) -> dict[str, Tensor]:
        """What the method carries from step to step beyond the weights, as named tensors: a snapshot needs them too."""
        return collected(self.direction, self.rule, self.estimator, self.perturber.pending, self.halvings)

    def carry(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `carried` returned."""
        left, halvings = handed_back(tensors, self.direction, self.rule, self.estimator)
        while self.halvings < halvings:
            self._halve()
        self.perturber.pending = not_folded(left, self.perturber, self.direction, Key(self.seed, self.steps - 1))

    def state_dict(self) -> dict[str, Any]:
        """torch's state plus what matters here: seed, steps taken, and what the method carries from step to step."""
        self._updates.settle()  # the model's own state is saved beside this one
        own = {"seed": self.seed, "steps": self.steps, "method": self.method, "carried": self.carried()}
        return {**super().state_dict(), "zotune": own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken. Raises UserError for another method's state."""
        own = state_dict.get("zotune")
        if own is not None and own["method"] != self.method:
            raise UserError(
                f"this is the state of {own['method']}, not of {self.method}. Remedy: build the same method."
            )
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "zotune"})
        if own is not None:
            self.seed, self.steps = own["seed"], own["steps"]
            self.carry(own.get("carried", {}))
        self._losses, self._last, self._weightless = [], [], False
        if self.parallel is not None:
            self.parallel.forget()


def _mean(seen: Sequence[tuple[float, float]]) -> float:
    # fsum rounds once, whatever the order: the mean does not depend on how examples were grouped.
    total = math.fsum(loss * weight for loss, weight in seen)
    return total / math.fsum(weight for _, weight in seen)
