"""What a run works with, built from its config: model, data, optimizer, fixed batches. Nothing is written here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, final

import torch
from torch import nn

import zotune
from zotune.arguments import check
from zotune.config import FIXED, TrainConfig
from zotune.data.batching import make_units, units_of_step
from zotune.data.source import Part, load_source
from zotune.dominant import dominant_layer
from zotune.errors import ConfigError, DataError, RunError
from zotune.evaluate import Evaluation, evaluate
from zotune.header import beyond
from zotune.load import device_of, load_model, load_tokenizer, offloaded
from zotune.methods import METHODS, accepts
from zotune.nonfinite import replay_step, skipped
from zotune.objective.base import Batch, Example, Objective, to_device
from zotune.objective.from_config import find_functions
from zotune.objective.functions import Functions
from zotune.objective.make import make_objective
from zotune.optimizer import ZerothOrder
from zotune.rebuild import scope_sha256
from zotune.records import StepRecord
from zotune.resolve import method_arguments, unknown_option
from zotune.reuse import Reuse
from zotune.run import RunPaths
from zotune.versions import check_versions
from zotune.watch import memory_bytes
from zotune.weights import base_sha256

if TYPE_CHECKING:
    from zotune.distributed.group import Group
    from zotune.distributed.pool import Pool
    from zotune.engines.server import Server


@final
class Session:
    """What one run works with, built from its config; nothing is written. `begin` adds what training needs.

    `model` stands for the one that the config names: one without weights, to plan with. `functions` are the rewards or
    the metric that the config names: without them they are imported, which runs their code. `group`: the processes
    that train together. `pool`: the workers that evaluate the steps; `server`: what scores them in their place.
    """

    optimizer: ZerothOrder

    def __init__(
        self,
        config: TrainConfig,
        model: nn.Module | None = None,
        training: bool = True,
        functions: Functions | None = None,
        group: Group | None = None,
        pool: Pool | None = None,
        server: Server | None = None,
    ) -> None:
        check_versions()
        if config.method not in METHODS:
            raise ConfigError(f"unknown method {config.method!r}. Remedy: one of {', '.join(METHODS)}.")
        _check_arguments(config.method, config.method_args)
        if config.threads:
            torch.set_num_threads(config.threads)
        self.config, self.scope, self.group, self.pool, self.server = config, config.scope, group, pool, server
        self.functions = find_functions(config) if functions is None else functions
        source = load_source(config, training)
        self.train_sha256 = source.train.sha256 if source.train else ""
        self.eval_sha256 = source.eval.sha256 if source.eval else ""
        self.data = source.says() or f"task {config.task}, data seed {config.data_seed}"
        tokenizer = load_tokenizer(config)
        self.held_bytes = memory_bytes()  # libraries, tokenizer and rows, before the weights
        self.model: nn.Module = load_model(config, group) if model is None else model
        # Where inputs go: of several devices to the first.
        self.device = device_of(config)
        if config.device_map is not None and model is None:
            self.device = next(self.model.parameters()).device
        self.offload = offloaded(config, self.model, self.device) if model is None else None
        self.objective = make_objective(config, tokenizer, self.model, source, self.functions)
        # The training rows first: they fix which labels there are.
        self.examples = _encode(self.objective, source.train) if source.train else []
        self.eval_examples = _encode(self.objective, source.eval) if source.eval else None
        if server is None:  # which is given a sequence for each candidate
            self.objective.prepare(self.model, [*self.examples, *(self.eval_examples or [])])
        self.measure = self.objective.for_evaluation()

    def begin(self) -> Session:
        """The optimizer on the base weights, the fixed batches, and the choices that the first batch decides."""
        config = self.config
        self.base_sha256 = base_sha256(self.model)
        self._divide()
        self.scope = self._located()
        self.build()
        if self.objective.set_level and self.optimizer.estimator.per_example:
            raise ConfigError(
                f"{config.method} needs a loss for each example, and {self.objective.says} is one number for a batch. "
                "Remedy: another method, or a score of each example."
            )
        self._check_parts()
        parallel = self.optimizer.parallel
        # One that finds a micro-batch's activations kept runs fewer blocks than the others, who wait for its weights.
        keep = parallel is None or not parallel.in_step
        self.reuse = Reuse(self.optimizer.perturber, config.reuse_mb << 20, keep=keep)
        # Always the run's first batch and the base weights, so that a resumed run decides as the first one did.
        first = units_of_step(len(self.units), self.units_per_step, config.seed, 0)[0]
        batch, points = self.batch(self.parts(first)[0]), self.optimizer.estimator.points(config.seed, 0)
        if self.server is not None:
            from zotune.engines.served import served

            self.optimizer.evaluator = served(self, self.server)
            self.reuse.reason = "a server evaluates the steps"
        elif self.objective.one_forward or self.objective.goes_on:
            self.reuse.prepare(self.objective, batch, next(point for point in points if point.scale))
        else:
            self.reuse.reason = "a loss takes several forwards"
        within = self.reuse.within(self.objective, batch, (first, 0))
        if self.optimizer.direction.reads_inputs:  # what is decided must be what the steps draw
            self.optimizer.look(self.objective, batch, within)
        self.optimizer.evaluator.decide(self.objective, batch, points, within)
        return self

    def _check_parts(self) -> None:
        """Raises ConfigError where a step on parts of its micro-batch would be another step."""
        rows = self.config.rows_per_forward
        if rows is None or rows >= max(map(len, self.units)):
            return
        reason = f"{self.objective.says} is one number for a batch" if self.objective.set_level else ""
        if self.pool is not None:
            reason = "workers of a pool evaluate whole micro-batches"
        if self.optimizer.direction.reads_inputs:
            reason = f"{self.config.method} reads the layers' inputs of a whole micro-batch"
        if reason:
            raise ConfigError(
                f"rows_per_forward is {rows}, but {reason}. Remedy: leave --rows-per-forward out; a smaller "
                "--micro-batch-size, which is another run, needs less memory too."
            )

    def _located(self) -> str:
        """The scope with `dominant` as the block that it is, on the base weights and the run's first batch."""
        parts = [part.strip() for part in self.config.scope.split("&")]
        if "dominant" not in parts:
            return self.config.scope
        first = units_of_step(len(self.units), self.units_per_step, self.config.seed, 0)[0]
        batch = self.batch(self.units[first])
        number = dominant_layer(self.model, lambda: self.objective(self.model, batch))
        return "&".join(f"block:{number}" if part == "dominant" else part for part in parts)

    def build(self) -> ZerothOrder:
        """The optimizer and the fixed batches. No weight is read."""
        self._divide()
        self.optimizer = self._optimizer()
        self.optimizer.estimator.check_examples(self.config.batch_size)
        self._lr = _schedule(self.optimizer, self.config)
        if self.optimizer.parallel is not None:
            ends = (0, max(0, self.config.steps - 1))
            most = max(len(self.optimizer.estimator.points(self.config.seed, step)) for step in ends)
            self.optimizer.parallel.check_work(self.units_per_step, most, self.optimizer.evaluator.max_lanes)
        return self.optimizer

    def _divide(self) -> None:
        size = self.config.micro_batch_size or self.config.batch_size
        self.lengths = self.objective.lengths(self.examples)
        self.units = make_units(self.lengths, size, self.config.seed)
        self.units_per_step = self.config.batch_size // size

    def _optimizer(self) -> ZerothOrder:
        c = self.config
        given = {key: value for key, value in (("lr", c.lr), ("eps", c.eps)) if value is not None}
        options: dict[str, Any] = {
            "scope": self.scope,
            "weight_decay": c.weight_decay,
            "blocks": c.blocks,
            "lanes": c.lanes,
            "graphs": c.graphs,
            "halve_eps": c.on_nonfinite == "halve-eps",
            "seed": c.seed,
        }
        if self.pool is not None:
            options["parallel"] = self.pool
        elif self.group is not None:
            from zotune.distributed.parallel import Parallel

            options["parallel"] = Parallel(c.parallel or "data", self.group, c.check_every)
        if self.offload is not None:
            options["offload"] = self.offload
        if c.queries is not None and "queries" in accepts(c.method):
            options["queries"] = c.queries
        elif c.queries not in (None, 1):
            raise ConfigError(
                f"{c.method} takes no queries. Remedy: leave it out; its own arguments are "
                f"{', '.join(sorted(accepts(c.method) - {'lr', 'eps', 'seed'}))}."
            )
        optimizer = METHODS[c.method].build(self.model, **given, **options, **c.method_args)
        if c.fold_every is not None or not c.weight_decay:
            optimizer.fold_in_windows(c.fold_every)
        return optimizer

    @property
    def forwards_per_step(self) -> int:
        """Forward passes of the first step."""
        parts = -(-(self.config.batch_size // self.units_per_step) // (self.config.rows_per_forward or 2**32))
        return len(self.optimizer.estimator.points(self.config.seed, 0)) * self.units_per_step * parts

    def tokens(self, step: int) -> int:
        """Tokens of the examples of a step, without padding; every point of the step reads them."""
        units = units_of_step(len(self.units), self.units_per_step, self.config.seed, step)
        return sum(self.lengths[i] for unit in units for i in self.units[unit])

    def parts(self, unit: int) -> list[list[int]]:
        """The examples of a unit, in the groups that share a forward: all of them, or `rows_per_forward` each."""
        rows = self.units[unit]
        size = self.config.rows_per_forward or len(rows)
        return [rows[start : start + size] for start in range(0, len(rows), size)]

    def batch(self, examples: Sequence[int]) -> Batch:
        """Some examples as one forward takes them."""
        return to_device(self.objective.collate([self.examples[i] for i in examples]), self.device)

    def step(self) -> None:
        """One optimizer step at the optimizer's own step number."""
        step, parallel = self.optimizer.steps, self.optimizer.parallel
        for group, lr in zip(self.optimizer.param_groups, self._lr(step), strict=True):
            group["lr"] = lr
        points = 0 if parallel is None else len(self.optimizer.estimator.points(self.config.seed, step))
        for unit in units_of_step(len(self.units), self.units_per_step, self.config.seed, step):
            for part, rows in enumerate(self.parts(unit)):
                if parallel is not None and parallel.elsewhere(len(rows), points):
                    continue
                batch = self.batch(rows) | {"step": step}
                within = self.reuse.within(self.objective, batch, (unit, part))
                self.optimizer.estimate(self.objective, batch, within=within)
        self.optimizer.step()

    def forwards(self, steps: int) -> int:
        """Forward passes of the first `steps` steps: of one micro-batch at one point each."""
        points = self.optimizer.estimator.points
        return self.units_per_step * sum(len(points(self.config.seed, step)) for step in range(steps))

    def replay(self, record: StepRecord) -> None:
        """Apply a recorded step; a method that reads the layers' inputs is shown those of the step's first unit."""
        if self.optimizer.direction.reads_inputs and not skipped(record):
            unit = units_of_step(len(self.units), self.units_per_step, self.config.seed, record.step)[0]
            batch = self.batch(self.units[unit]) | {"step": record.step}
            # With what is reused, as the step itself ran.
            self.optimizer.look(self.objective, batch, self.reuse.within(self.objective, batch, (unit, 0)))
        replay_step(self.optimizer, record)

    def evaluate(self) -> Evaluation | None:
        """On the held-out rows, where there are any."""
        if self.eval_examples is None:
            return None
        # Those of one forward are of no use to one that reads a second prompt. Where it generates they could be reused,
        # but keys and values are large: what may be kept is left to training, which meets its prompts more often.
        within = self._within if hasattr(self, "reuse") and self.measure.one_forward else None
        with self.optimizer.settled() if hasattr(self, "optimizer") else nullcontext():
            return evaluate(self.model, self.measure, self.eval_examples, self.config.eval_batch_size, within)

    def _within(self, index: int, batch: Batch) -> AbstractContextManager[None]:
        """Evaluation skips the blocks below the scope too: they stay what they were."""
        return self.reuse.within(self.measure, batch, ("eval", index))(1)

    def header(self, **known: str) -> dict[str, Any]:
        """The journal's header. `known` replaces hashes that cannot be taken from a model without weights."""
        own = self.optimizer.header()
        names = [parameter["name"] for parameter in own["parameters"]]
        return {
            "zotune": zotune.__version__,
            "torch": torch.__version__,
            **own,
            "scope_sha256": known.get("scope_sha256") or scope_sha256(self.model, names),
            "base_sha256": known.get("base_sha256") or self.base_sha256,
            "train_sha256": self.train_sha256,
            "eval_sha256": self.eval_sha256,
            "config": self.config.course(),
            **({"functions": sources} if (sources := {f.short: f.sha256 for f in self.functions.all()}) else {}),
        }


def _check_arguments(method: str, arguments: dict[str, Any]) -> None:
    """The method's own arguments against its factory's. Raises ConfigError naming the first that is none or wrong."""
    accepted = method_arguments(method)
    for name, value in arguments.items():
        if name not in accepted:
            raise unknown_option(name, method, accepted)
        if most := beyond(name, value):
            raise ConfigError(f"{name} is {value!r}, beyond {most:g}. Remedy: a smaller one.")
    check(METHODS[method].build, arguments)


def _encode(objective: Objective, part: Part) -> list[Example]:
    """Rows to examples; what is wrong with a row is said with the name of its file."""
    try:
        return objective.encode(part.rows)
    except DataError as error:
        raise DataError(f"{part.name}: {error}") from None


def _schedule(optimizer: ZerothOrder, config: TrainConfig) -> Callable[[int], list[float]]:
    """The learning rate of each group as a function of the step: transformers' schedules, without their counters."""
    from transformers import get_scheduler

    kind = config.lr_schedule
    if kind == "constant" and config.warmup_steps:
        kind = "constant_with_warmup"  # type: ignore[assignment]
    scheduler: Any = get_scheduler(kind, optimizer, config.warmup_steps, config.steps)
    base = [float(group["initial_lr"]) for group in optimizer.param_groups]
    return lambda step: [lr * float(of(step)) for lr, of in zip(base, scheduler.lr_lambdas, strict=True)]


def check_same(recorded: dict[str, Any], now: dict[str, Any], paths: RunPaths) -> None:
    """Refuses to continue a run on another base model, other data or other settings than it began with.

    `recorded` and `now` are journal headers. Raises RunError naming every option that differs, or the first other
    difference.
    """
    config = recorded.get("config", {})
    changed = [name for name, value in config.items() if name in now["config"] and now["config"][name] != value]
    if changed:
        listed = "; ".join(
            f"{name} is {now['config'][name]!r} in {paths.config.name}, the run began with {config[name]!r}"
            for name in changed
        )
        other = "start another run" if set(changed) & set(FIXED) else "take it for the steps to come: `zotune branch`"
        raise RunError(f"{paths.folder} cannot continue: {listed}. Remedy: restore it, or {other}.")
    said = {
        "stream": "this version draws another noise stream",
        "base_sha256": "the base model's weights have changed",
        "train_sha256": "the training rows have changed",
        "eval_sha256": "the held-out rows have changed",
        "scope_sha256": "the initial weights in scope have changed",
    }
    for key in ("method", "arguments", "seed", "fold_every", "blocks", "halve_eps", "parameters", "groups", *said):
        if key in recorded and recorded[key] != now.get(key):
            what = said.get(key, f"{key}: {now.get(key)!r} for {recorded[key]!r}")
            hashes = f" ({str(now.get(key))[:16]}, it was {str(recorded[key])[:16]})" if key.endswith("_sha256") else ""
            raise RunError(
                f"{paths.folder} cannot continue: {what} since the run began{hashes}. "
                "Remedy: restore what it began with, or start another run."
            )
