"""The training loop, and the other things one can do with a run: resume, replay, evaluate, list.

A run is its base model, its config and its journal. Data order, directions and learning rates are functions of
(seed, step), so a resumed run needs no other state; snapshots only shorten the way back.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, final

import torch
from torch import nn

import zotune
from zotune.config import TrainConfig
from zotune.data.batching import make_units, units_of_step
from zotune.errors import ConfigError, RunError
from zotune.evaluate import Evaluation, evaluate
from zotune.journal import HashRecord, Journal, StepRecord
from zotune.journal import read as read_journal
from zotune.load import device_of, load_model, load_tokenizer, make_objective, read
from zotune.methods import METHODS
from zotune.objective.base import Batch, Example, to_device
from zotune.optimizer import ZerothOrder
from zotune.rebuild import apply, current_sha256, rebuild, scope_sha256
from zotune.resolve import resolve
from zotune.reuse import Reuse
from zotune.run import RunFolder, RunPaths
from zotune.watch import Watch
from zotune.weights import base_sha256


@final
class Session:
    """What one run works with, built from its config; nothing is written. `begin` adds what training needs."""

    optimizer: ZerothOrder

    def __init__(self, config: TrainConfig) -> None:
        if config.method not in METHODS:
            raise ConfigError(f"unknown method {config.method!r}. Remedy: one of {', '.join(METHODS)}.")
        if config.threads:
            torch.set_num_threads(config.threads)
        self.config = config
        rows, self.train_sha256 = read(config.train)
        eval_rows = read(config.eval)[0] if config.eval else None
        tokenizer = load_tokenizer(config)
        self.model: nn.Module = load_model(config)
        self.device = device_of(config)
        self.objective = make_objective(config, tokenizer, self.model)
        # The training rows first: they fix which labels there are.
        self.examples: list[Example] = self.objective.encode(rows)
        self.eval_examples = self.objective.encode(eval_rows) if eval_rows is not None else None

    def begin(self) -> Session:
        """The optimizer on the base weights, the fixed batches, and the choices that the first batch decides."""
        config = self.config
        self.base_sha256 = base_sha256(self.model)
        self.optimizer = self._optimizer()
        self._lr = _schedule(self.optimizer, config)
        size = config.micro_batch_size or config.batch_size
        self.units = make_units(self.objective.lengths(self.examples), size, config.seed)
        self.units_per_step = config.batch_size // size
        self.reuse = Reuse(self.optimizer.perturber, config.reuse_mb << 20)
        # Always the run's first batch and the base weights, so that a resumed run decides as the first one did.
        first = units_of_step(len(self.units), self.units_per_step, config.seed, 0)[0]
        batch, points = self.batch(first), self.optimizer.estimator.points(config.seed, 0)
        self.reuse.prepare(self.objective, batch, points[0])
        within = self.reuse.within(self.objective, batch, first)
        self.optimizer.evaluator.decide(self.objective, batch, points, within)
        return self

    def _optimizer(self) -> ZerothOrder:
        c = self.config
        given = {key: value for key, value in (("lr", c.lr), ("eps", c.eps)) if value is not None}
        options = {
            "scope": c.scope,
            "weight_decay": c.weight_decay,
            "lanes": c.lanes,
            "seed": c.seed,
            "queries": c.queries,
        }
        return METHODS[c.method].build(self.model, **given, **options, **c.method_args)

    def batch(self, unit: int) -> Batch:
        """One unit of evaluation: always the same examples, in the same order."""
        return to_device(self.objective.collate([self.examples[i] for i in self.units[unit]]), self.device)

    def step(self) -> None:
        """One optimizer step at the optimizer's own step number."""
        step = self.optimizer.steps
        for group, lr in zip(self.optimizer.param_groups, self._lr(step), strict=True):
            group["lr"] = lr
        for unit in units_of_step(len(self.units), self.units_per_step, self.config.seed, step):
            batch = self.batch(unit)
            self.optimizer.estimate(self.objective, batch, within=self.reuse.within(self.objective, batch, unit))
        self.optimizer.step()

    def evaluate(self) -> Evaluation | None:
        """On the held-out rows, where there are any."""
        if self.eval_examples is None:
            return None
        return evaluate(self.model, self.objective, self.eval_examples, self.config.eval_batch_size)

    def header(self) -> dict[str, Any]:
        """The journal's header."""
        own = self.optimizer.header()
        names = [parameter["name"] for parameter in own["parameters"]]
        return {
            "zotune": zotune.__version__,
            "torch": torch.__version__,
            **own,
            "scope_sha256": scope_sha256(self.model, names),
            "base_sha256": self.base_sha256,
            "train_sha256": self.train_sha256,
        }


def _schedule(optimizer: ZerothOrder, config: TrainConfig) -> Callable[[int], list[float]]:
    """The learning rate of each group as a function of the step: transformers' schedules, without their counters."""
    from transformers import get_scheduler

    kind = config.lr_schedule
    if kind == "constant" and config.warmup_steps:
        kind = "constant_with_warmup"  # type: ignore[assignment]
    scheduler: Any = get_scheduler(kind, optimizer, config.warmup_steps, config.steps)
    base = [float(group["initial_lr"]) for group in optimizer.param_groups]
    return lambda step: [lr * float(of(step)) for lr, of in zip(base, scheduler.lr_lambdas, strict=True)]


def train(config: TrainConfig, watch: Watch) -> dict[str, Any]:
    """Run a new training run in `config.output_dir`. Returns steps, weights_sha256, journal_bytes, seconds and, with
    held-out rows, accuracy_before and accuracy_after (None for a language-model loss), loss_before and loss_after.

    Raises UserError (a subclass) for anything the user can mend; what was recorded stays and can be resumed.
    """
    config = config.absolute()
    with RunFolder.create(config.output_dir, config.to_yaml()) as folder:
        session = Session(config).begin()
        _say(session, watch)
        # The first evaluation comes before the journal: a run that has one has begun.
        _evaluate(session, folder, watch)
        with Journal.create(folder.paths.journal, session.header()) as journal:
            return _loop(session, folder, journal, watch)


def resume(run: str | Path, watch: Watch) -> dict[str, Any]:
    """Continue an interrupted run to its last step; returns what `train` returns. A finished run changes nothing.

    Raises RunError when the base model, the training rows or the config are no longer those of the run.
    """
    paths = RunPaths(run)
    if paths.config.exists() and not paths.journal.exists():
        watch.say("The run was stopped before its first step: it starts anew.")
        paths.metrics.unlink(missing_ok=True)
        return train(_config(paths), watch)
    with RunFolder.open(run) as folder, Journal.append_to(paths.journal) as journal:
        session = Session(_config(paths)).begin()
        _same(journal.header, session.header(), paths)
        _say(session, watch)
        _catch_up(session, folder, journal, watch)
        return _loop(session, folder, journal, watch)


def _catch_up(session: Session, folder: RunFolder, journal: Journal, watch: Watch) -> None:
    """Weights, metrics and hashes as they were after the journal's last step."""
    records = [record for record in journal.records if isinstance(record, StepRecord)]
    rows = folder.cut_metrics(len(records))
    known = min(len(records), max((row["step"] for row in rows if "loss" in row), default=0))
    found = folder.latest_snapshot(known)
    if found is not None:
        step, tensors, _ = found
        _put(session.optimizer, tensors)
        session.optimizer.steps = step
    if not any(row["step"] == 0 for row in rows):
        raise RunError(f"{folder.paths.metrics} has lost its beginning. Remedy: restore it, or start another run.")
    evaluated = {row["step"] for row in rows if "eval" in row}
    for record in records[session.optimizer.steps :]:
        session.optimizer.replay(record)
        if record.step + 1 > known:
            _log_step(session, folder, record)
        if _due(session, session.optimizer.steps) and session.optimizer.steps not in evaluated:
            _evaluate(session, folder, watch)
    watch.say(f"Replayed to step {session.optimizer.steps} without data; going on from there.")


def _loop(session: Session, folder: RunFolder, journal: Journal, watch: Watch) -> dict[str, Any]:
    config, optimizer = session.config, session.optimizer
    written: list[StepRecord] = []
    hashed = {record.step for record in journal.records if isinstance(record, HashRecord)}

    def record(step: StepRecord) -> None:
        journal.append(step)
        written.append(step)

    optimizer.record = record
    begun = time.perf_counter()
    _mark(session, folder, journal, hashed)
    while optimizer.steps < config.steps:
        start = time.perf_counter()
        session.step()
        seconds = time.perf_counter() - start
        loss = _log_step(session, folder, written.pop())
        watch.step(optimizer.steps, config.steps, loss, seconds, {"g": optimizer.probes[0].coef})
        if _due(session, optimizer.steps):
            _evaluate(session, folder, watch)
        _mark(session, folder, journal, hashed)
    seconds = time.perf_counter() - begun
    sha256 = current_sha256(optimizer)
    if optimizer.steps not in hashed:
        journal.append(HashRecord(optimizer.steps, sha256))
    folder.log_timing({"steps": optimizer.steps, "seconds": round(seconds, 3)})
    result = {
        "steps": optimizer.steps,
        "weights_sha256": sha256,
        "journal_bytes": journal.size,
        "seconds": seconds,
    }
    return result | _before_and_after(folder) | {"run": str(folder.path)}


def _mark(session: Session, folder: RunFolder, journal: Journal, hashed: set[int]) -> None:
    """Every `snapshot_every` steps: the snapshot first, then the hash that says it should be there."""
    step = session.optimizer.steps
    if step and step % session.config.snapshot_every == 0 and step not in hashed:
        tensors = {target.name: target.data for target in session.optimizer.perturber.targets()}
        sha256 = current_sha256(session.optimizer)
        folder.save_snapshot(step, tensors, {"weights_sha256": sha256})
        journal.append(HashRecord(step, sha256))
        hashed.add(step)


def _log_step(session: Session, folder: RunFolder, record: StepRecord) -> float:
    loss = math.fsum(record.losses) / len(record.losses)
    coef = session.optimizer.estimator.probes(session.optimizer.seed, record.step, record.losses)[0].coef
    folder.log_metrics({"step": record.step + 1, "loss": loss, "projected_gradient": coef, "lr": record.lrs[0]})
    return loss


def _due(session: Session, step: int) -> bool:
    every = session.config.eval_every
    return session.eval_examples is not None and (step == session.config.steps or bool(every and step % every == 0))


def _evaluate(session: Session, folder: RunFolder, watch: Watch) -> None:
    found = session.evaluate()
    step = session.optimizer.steps
    values = {} if found is None else _plain(found)
    folder.log_metrics({"step": step, "eval": values})
    if found is not None:
        watch.eval(step, {key: value for key, value in values.items() if value is not None})


def _plain(found: Evaluation) -> dict[str, Any]:
    keys = ("loss", "accuracy", "examples", "low", "high")
    return {key: getattr(found, key) for key in keys}


def _before_and_after(folder: RunFolder) -> dict[str, Any]:
    rows = [row for row in folder.cut_metrics(2**32) if row.get("eval")]
    if not rows:
        return {}
    first, last = rows[0]["eval"], rows[-1]["eval"]
    return {
        f"{key}_{when}": of[key] for key in ("accuracy", "loss") for when, of in (("before", first), ("after", last))
    }


def _put(optimizer: ZerothOrder, tensors: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for target in optimizer.perturber.targets():
            target.data.copy_(tensors[target.name])


def _config(paths: RunPaths) -> TrainConfig:
    """The run's own config; the folder may have been moved since."""
    return resolve({"output_dir": paths.folder}, paths.config)


def _same(recorded: dict[str, Any], now: dict[str, Any], paths: RunPaths) -> None:
    """Refuses to continue a run on another base model, other data or other settings than it began with."""
    said = {
        "base_sha256": "the base model's weights have changed",
        "train_sha256": "the training rows have changed",
        "scope_sha256": "the initial weights in scope have changed",
        "stream": "this version draws another noise stream",
    }
    for key in (
        "stream",
        "base_sha256",
        "train_sha256",
        "method",
        "arguments",
        "seed",
        "parameters",
        "groups",
        "scope_sha256",
    ):
        if recorded.get(key) != now.get(key):
            what = said.get(
                key, f"{key} in {paths.config.name} is not the run's: {now.get(key)} for {recorded.get(key)}"
            )
            raise RunError(
                f"{paths.folder} cannot continue: {what} since the run began. "
                "Remedy: restore what it began with, or start another run."
            )


def _say(session: Session, watch: Watch) -> None:
    config, optimizer, reuse = session.config, session.optimizer, session.reuse
    count = sum(target.data.numel() for target in optimizer.perturber.targets())
    total = sum(parameter.numel() for parameter in session.model.parameters())
    lanes = optimizer.evaluator
    forwards = len(optimizer.estimator.points(config.seed, 0))
    together = "one batch for both sides" if lanes.mode == "lanes" else f"one at a time ({lanes.reason})"
    watch.header(
        {
            "model": f"{config.model} ({total:,} parameters, {config.dtype}, {session.device})",
            "method": f"{config.method}, lr {optimizer.defaults['lr']:g}, eps {optimizer.arguments.get('eps', 0):g}",
            "trained": f"{count:,} parameters (scope {config.scope})",
            "data": f"{len(session.examples):,} examples in {len(session.units):,} fixed batches",
            "step": f"{forwards * session.units_per_step} forwards, {together}",
            "reused": f"{reuse.depth} blocks below the scope run once per batch"
            if reuse.depth
            else f"nothing: {reuse.reason}",
            "run": str(config.output_dir),
        }
    )


def replay(run: str | Path, verify: bool, watch: Watch, to: Path | None = None) -> dict[str, Any]:
    """Rebuild a run's weights from base model and journal, without data; with `verify`, RunError unless the hash is the
    recorded one. `to` is a folder that gets the model in Hugging Face format."""
    begun = time.perf_counter()
    paths = RunPaths(run).check()
    config = _config(paths)
    header, records, _ = read_journal(paths.journal)
    model = load_model(config)
    optimizer = rebuild(header, model)
    if header.get("base_sha256") not in (None, base_sha256(model)):
        raise RunError(f"the base model {config.model} has changed since the run began. Remedy: restore it.")
    found = apply(optimizer, records)
    if verify and not found["verified"]:
        known = found["recorded_sha256"]
        raise RunError(
            f"{paths.folder}: the replayed weights hash to {found['weights_sha256'][:16]}..., "
            + (f"the journal recorded {known[:16]}..." if known else "but the journal has no hash of its last step")
            + f" Remedy: `zotune resume {paths.folder}` finishes a run; else check base model and version."
        )
    if to is not None:
        model.save_pretrained(to)  # type: ignore[operator]
        load_tokenizer(config).save_pretrained(to)
    result = {**found, "journal_bytes": paths.journal.stat().st_size, "seconds": time.perf_counter() - begun}
    return result if found["recorded_sha256"] else {**result, "verified": False}


def evaluate_run(config: TrainConfig, run: str | Path | None, watch: Watch) -> dict[str, Any]:
    """Accuracy and loss on `config.eval`: of the weights that a run's journal leads to, or of the bare model.

    `config` is the run's own, with other evaluation rows perhaps. The run folder is only read.
    """
    session, steps = Session(config), 0
    if run is not None:
        paths = RunPaths(run).check()
        header, records, torn = read_journal(paths.journal)
        if torn:
            watch.say(f"The journal ends in {torn} bytes of an unfinished record; they are left out.")
        steps = apply(rebuild(header, session.model), records)["steps"]
    found = session.evaluate()
    if found is None:
        raise ConfigError("there are no rows to evaluate on. Remedy: --eval FILE.")
    watch.eval(steps, {key: value for key, value in _plain(found).items() if value is not None})
    return _plain(found) | {"steps": steps}


def log_rows(run: str | Path) -> Sequence[dict[str, Any]]:
    """The journal as rows: step, lr, losses, their mean, and the projected gradient of the first probe."""
    header, records, _ = read_journal(RunPaths(run).check().journal)
    rows = []
    eps, queries = header["arguments"].get("eps"), header["arguments"].get("queries", 1)
    for record in records:
        if isinstance(record, StepRecord):
            row: dict[str, Any] = {"step": record.step, "lr": record.lrs[0], "losses": list(record.losses)}
            row["loss"] = math.fsum(record.losses) / len(record.losses)
            if eps and len(record.losses) == 2 * queries:
                row["projected_gradient"] = (record.losses[0] - record.losses[1]) / (2 * eps * queries)
            rows.append(row)
    return rows
