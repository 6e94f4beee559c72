"""The training loop: train and resume.

A run is its base model, its config and its journal. Data order, directions and learning rates are functions of
(seed, step), so a resumed run needs no other state; snapshots only shorten the way back.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch

from zotune.config import TrainConfig
from zotune.errors import RunError
from zotune.journal import HashRecord, Journal, StepRecord
from zotune.optimizer import ZerothOrder
from zotune.rebuild import current_sha256
from zotune.run import RunFolder, RunPaths
from zotune.session import Session, check_same, config_of
from zotune.watch import Watch


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
        return train(config_of(paths), watch)
    with RunFolder.open(run) as folder, Journal.append_to(paths.journal) as journal:
        session = Session(config_of(paths)).begin()
        check_same(journal.header, session.header(), paths)
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
    values = {} if found is None else found.as_dict()
    folder.log_metrics({"step": step, "eval": values})
    if found is not None:
        watch.eval(step, {key: value for key, value in values.items() if value is not None})


def _before_and_after(folder: RunFolder) -> dict[str, Any]:
    """`accuracy_before`, `accuracy_after`, and so on for loss and interval, from the first and the last evaluation."""
    rows = [row["eval"] for row in folder.cut_metrics(2**32) if row.get("eval")]
    if not rows:
        return {}
    keys = ("accuracy", "loss", "low", "high")
    both = {f"{key}_{when}": found[key] for key in keys for when, found in (("before", rows[0]), ("after", rows[-1]))}
    return both | {"eval_examples": rows[-1]["examples"]}


def _put(optimizer: ZerothOrder, tensors: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for target in optimizer.perturber.targets():
            target.data.copy_(tensors[target.name])


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
