"""`zotune plan`: memory, time and disk of a run before it starts, without reading a weight.

The model is built on the meta device and the run's own code runs on it: lanes, reuse, objective, batches. `meter.py`
sees what that would allocate and compute, `calibrate.py` knows what this machine needs for it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, final

import torch
from torch import nn

from zotune.calibrate import Machine, calibrate
from zotune.config import TrainConfig
from zotune.engines.parts import Sizes, parts, sizes
from zotune.errors import ConfigError
from zotune.journal import HashRecord, StepRecord
from zotune.kernels import fast_for
from zotune.load import NAMES, meta_model, stored
from zotune.machine import free_disk_bytes, free_memory_bytes
from zotune.meter import Meter, Priced
from zotune.objective.base import Batch, Example, to_device
from zotune.optimizer import ZerothOrder, check_offload
from zotune.perturb import repeat
from zotune.records import encode, encode_header
from zotune.reuse import Reuse
from zotune.run import RunPaths
from zotune.session import Session
from zotune.snapshot import KEEP
from zotune.watch import Watch, memory_bytes

_META = torch.device("meta")
_LENGTHS = 3  # batches that are metered for the time; between their lengths it is interpolated
_HASH = "0" * 64


@final
@dataclasses.dataclass
class Cost:
    """Of some forwards on one batch. peak: bytes beyond the weights; seconds: on the calibrated machine."""

    peak: int
    seconds: float


def plan(config: TrainConfig, watch: Watch, run: Path | None = None) -> dict[str, Any]:
    """Predict a run of `config`. Reads the model's config and tokenizer, and the rows; no weight.

    Returns memory (bytes by term, peak, free, fits), forwards_per_step, seconds_per_step, seconds, disk (bytes by term)
    and, with the folder of a finished `run`, what that run measured. Raises what `zotune train` would raise for the
    same options.
    """
    if config.generates:
        raise ConfigError(
            "how long completions become is not known before they are generated, so such a run cannot be planned. "
            "Remedy: try a few --steps; memory is little more than that of the same run on --completion-column."
        )
    device = _device(config)
    session = Session(config, model=meta_model(config))
    optimizer = _built(session, watch)
    held = memory_bytes()  # libraries, tokenizer and rows: the run has them too
    law = str(optimizer.arguments.get("law", "gaussian"))
    machine = calibrate(device, _dtype(session.model), law, watch.say)
    if config.offload is not None:
        check_offload(optimizer.method, optimizer.direction, optimizer.rule, optimizer.parallel)
        watch.say("The time does not count how long blocks take to come to the device and back.")
    priced = Priced(optimizer.direction)
    optimizer.perturber.direction, optimizer.perturber.fast = priced, False
    forecast = _Forecast(session, optimizer, machine, priced, held)
    memory = forecast.memory(device)
    step, once, evaluation, first = forecast.seconds()
    evaluations = (
        0 if session.eval_examples is None else 2 + (config.steps - 1) // (config.eval_every or config.steps + 1)
    )
    free = free_memory_bytes(device)
    disk = _disk(session, optimizer, forecast.offload)
    free_disk = free_disk_bytes(config.output_dir)
    seconds = config.steps * step + once + evaluations * evaluation + (first if evaluations else 0.0)
    return {
        "model": config.model,
        "parameters": sum(parameter.numel() for parameter in session.model.parameters()),
        "trained": sum(target.data.numel() for target in optimizer.perturber.targets()),
        "forwards_per_step": len(optimizer.estimator.points(config.seed, 0)) * session.units_per_step,
        "blocks_reused": forecast.reuse.depth,
        "memory": {**memory, "free": free, "fits": None if free is None else memory["peak"] <= free},
        "seconds_per_step": step,
        "seconds": seconds,
        "train_seconds": config.steps * step + once,
        "disk": {**disk, "free": free_disk, "fits": disk["total"] <= free_disk},
        "machine": dataclasses.asdict(machine),
        **({} if run is None else {"measured": _measured(run)}),
    }


def _built(session: Session, watch: Watch) -> ZerothOrder:
    """The optimizer; MeZO in the place of a method whose directions must read the weights."""
    try:
        return session.build()
    except (NotImplementedError, RuntimeError):
        watch.say(
            f"{session.config.method} looks at the weights before it begins: planned as mezo, which it resembles."
        )
        session.config = dataclasses.replace(session.config, method="mezo", method_args={})
        return session.build()


@final
class _Forecast:
    """The metered forwards of a session on the meta device."""

    def __init__(self, session: Session, optimizer: ZerothOrder, machine: Machine, priced: Priced, held: int) -> None:
        self.session, self.optimizer, self.machine, self.priced = session, optimizer, machine, priced
        self.held = held
        self.offload = None if session.config.offload is None else sizes(session.model, parts(session.model))
        self.points = optimizer.estimator.points(session.config.seed, 0)
        self.reuse = Reuse(optimizer.perturber, session.config.reuse_mb << 20)
        with Meter():
            self.reuse.locate(session.objective, self.batch(0), self.points[0])
        self.lanes = self._lanes()

    def batch(self, unit: int) -> Batch:
        """One unit of training, without its values."""
        examples = [self.session.examples[i] for i in self.session.units[unit]]
        return to_device(self.session.objective.collate(examples), _META)

    def memory(self, device: torch.device) -> dict[str, int]:
        """Bytes by term, and their peak: the greater of loading and running."""
        config, model = self.session.config, self.session.model
        weights = _weight_bytes(model) if self.offload is None else _held(config, self.offload, device)
        in_files, dtypes = stored(config)
        longest = max(range(len(self.session.units)), key=self._width)
        running = max(self.step(longest).peak, self.capture(self.batch(longest)).peak)
        evals = self._eval_batches()
        if evals:  # the longest one
            batch = to_device(self.session.objective.collate(evals[0]), _META)
            running = max(running, self.capture(batch).peak, self.evaluation(0, batch).peak)
        # The output of a block is as large as its batch.
        per_token = self.captured(self.batch(longest)) / self._width(longest)
        kept = round(per_token * sum(map(self._tokens, (*self._units(), *evals))))
        kept = min(kept, config.reuse_mb << 20)
        scope = sum(target.data.numel() for target in self.optimizer.perturber.targets())
        working = self.machine.working_fast if fast_for(scope) else self.machine.working
        state = 4 * self.optimizer.direction.state_elements(self.optimizer.perturber.targets())
        converted = 0 if dtypes <= {NAMES.get(_dtype(model))} or device.type != "cpu" else in_files
        held, working = (self.held, working) if device.type == "cpu" else (0, 0)
        terms = {"runtime": held + working, "weights": weights, "activations": running, "reused": kept, "state": state}
        # Loading is over before the first forward: what that needs for itself is not there yet.
        peak = held + weights + max(working + running + kept + state, converted)
        return {**terms, "loading": converted, "peak": peak}

    def seconds(self) -> tuple[float, float, float, float]:
        """Of a step, of what is done once per batch and kept, of an evaluation, and of what only the first one does."""
        units = sorted(range(len(self.session.units)), key=self._width)
        chosen = _spread(units)
        widths = [self._width(unit) for unit in units]
        steps = _sum_over(widths, {self._width(unit): self.step(unit).seconds for unit in chosen})
        once = _sum_over(widths, {self._width(unit): self.capture(self.batch(unit)).seconds for unit in chosen})
        scope = sum(target.data.numel() for target in self.optimizer.perturber.targets())
        step = steps / len(units) * self.session.units_per_step + scope * self.machine.update * len(self.points) / 2
        batches = self._eval_batches()
        widths = [self._tokens(examples) for examples in batches]
        seen, captured = {}, {}
        for index in _spread(range(len(batches))):
            batch = to_device(self.session.objective.collate(batches[index]), _META)
            seen[widths[index]] = self.evaluation(index, batch).seconds
            captured[widths[index]] = self.capture(batch).seconds
        return step, once, _sum_over(widths, seen), _sum_over(widths, captured)

    def step(self, unit: int) -> Cost:
        """The evaluations of one unit at every point of a step."""
        batch = self.batch(unit)
        within = self.reuse.within(self.session.objective, batch, unit)
        size = 2 if self.lanes else 1
        groups = [self.points[i : i + size] for i in range(0, len(self.points), size)]
        costs = []
        for group in groups:
            with Meter(), within(1):  # the capture is not part of the step: it was made before
                pass
            stacked = batch if len(group) == 1 else repeat(batch, len(group))
            rows = len(self.session.units[unit])
            before = self.priced.drawn

            def at(group: Any = group, rows: int = rows) -> AbstractContextManager[Any]:
                return self.optimizer.perturber.at(*group, rows=rows)

            cost = self.forward(stacked, at, within(len(group)))
            drawn = self.priced.drawn - before
            costs.append(Cost(cost.peak, cost.seconds + drawn * self.machine.probe))
        return Cost(max(cost.peak for cost in costs), sum(cost.seconds for cost in costs))

    def forward(self, batch: Batch, at: Callable[[], AbstractContextManager[Any]], within: Any = None) -> Cost:
        """One forward of the objective."""
        with torch.inference_mode(), at(), within or nullcontext(), Meter() as meter:
            self.session.objective(self.session.model, batch)
        return Cost(meter.peak, self._price(meter))

    def evaluation(self, index: int, batch: Batch) -> Cost:
        """The forward of a batch of held-out rows; blocks below the scope were run before."""
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
            return self.reuse.bytes_of(self.session.objective, batch)

    def _lanes(self) -> bool:
        """Whether both sides ride in one forward, as far as shapes can tell."""
        if self.session.config.lanes == "off" or len(self.points) < 2:
            return False
        batch, rows = self.batch(0), len(self.session.units[0])
        try:
            with torch.inference_mode(), self.optimizer.perturber.at(*self.points[:2], rows=rows), Meter():
                self.session.objective(self.session.model, repeat(batch, 2))
        except Exception:  # what has no lane rule, or shapes that do not fit: the run too goes one by one then
            return False
        return True

    def _price(self, meter: Meter) -> float:
        products = sum(self.machine.seconds_of_product(*each) for each in meter.products)
        return products + sum(map(self.machine.seconds_of_pass, meter.passes))

    def _units(self) -> list[list[Example]]:
        return [[self.session.examples[i] for i in unit] for unit in self.session.units]

    def _width(self, unit: int) -> int:
        return self._tokens([self.session.examples[i] for i in self.session.units[unit]])

    def _tokens(self, examples: Sequence[Example]) -> int:
        """Of a batch, padding included."""
        return max(self.session.objective.lengths(examples)) * len(examples)

    def _eval_batches(self) -> list[list[Example]]:
        """Batches of held-out rows as `evaluate` makes them, the longest first."""
        examples, size = self.session.eval_examples or [], self.session.config.eval_batch_size
        lengths = self.session.objective.lengths(examples) if examples else []
        order = sorted(range(len(examples)), key=lengths.__getitem__)
        batches = [[examples[i] for i in order[start : start + size]] for start in range(0, len(order), size)]
        return batches[::-1]


def _disk(session: Session, optimizer: ZerothOrder, offload: Sizes | None) -> dict[str, int]:
    """Bytes of the journal (exact), of the metrics (about), of the snapshots that are kept, and of blocks on disk."""
    config = session.config
    names = [parameter["name"] for parameter in optimizer.header()["parameters"]]
    header = session.header(base_sha256=_HASH, scope_sha256=_HASH)
    marks = config.steps // config.snapshot_every + (
        1 if not config.steps or config.steps % config.snapshot_every else 0
    )
    losses = (0.0,) * len(optimizer.estimator.points(config.seed, 0))
    record = len(encode(StepRecord(0, (0.0,) * len(optimizer.param_groups), losses)))
    journal = len(encode_header(header)) + config.steps * record + marks * len(encode(HashRecord(0, _HASH)))
    scope = sum(target.data.numel() * target.data.element_size() for target in optimizer.perturber.targets())
    snapshots = min(KEEP, config.steps // config.snapshot_every) * (scope + sum(len(name) + 70 for name in names))
    metrics = 110 * config.steps
    blocks = offload.streamed if offload is not None and config.offload == "disk" else 0
    found = {"journal": journal, "metrics": metrics, "snapshots": snapshots, "blocks": blocks}
    return found | {"total": sum(found.values())}


def _measured(run: Path) -> dict[str, Any]:
    """What a finished run wrote down: peak_memory_bytes, seconds, journal_bytes."""
    paths = RunPaths(run).check()
    lines = paths.timing.read_text(encoding="utf-8").splitlines() if paths.timing.exists() else []
    rows = [json.loads(line) for line in lines]
    return {
        "peak_memory_bytes": max((row.get("peak_memory_bytes", 0) for row in rows), default=None),
        "train_seconds": sum(row["seconds"] for row in rows) if rows else None,
        "journal_bytes": paths.journal.stat().st_size,
    }


def _held(config: TrainConfig, offload: Sizes, device: torch.device) -> int:
    """Bytes of weights in the memory of the device: on a GPU the next block is there too."""
    if device.type == "cuda":
        return offload.resident + 2 * offload.room
    return offload.resident + offload.room + (offload.streamed if config.offload == "cpu" else 0)


def _weight_bytes(model: nn.Module) -> int:
    """Parameters and buffers; tied ones count once."""
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _dtype(model: nn.Module) -> torch.dtype:
    return next(parameter.dtype for parameter in model.parameters())


def _device(config: TrainConfig) -> torch.device:
    from zotune.load import device_of

    return device_of(config)


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
