"""`zotune plan`: memory, time and disk of a run before it starts, without reading a weight.

The model is built on the meta device and the run's own code runs on it: lanes, reuse, objective, batches. `meter.py`
sees what that would allocate and compute, `calibrate.py` knows what this machine needs for it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from zotune.calibrate import calibrate
from zotune.config import TrainConfig
from zotune.distributed.work import Work
from zotune.engines.parts import Sizes
from zotune.engines.served import check_served
from zotune.forecast import Forecast, dtype_of
from zotune.journal import HashRecord, StepRecord
from zotune.load import device_of, meta_model
from zotune.logged import timing_of
from zotune.machine import free_disk_bytes, free_memory_bytes
from zotune.objective.generated import Generated
from zotune.optimizer import ZerothOrder
from zotune.presets import said
from zotune.records import encode, encode_header
from zotune.refusals import check_offload
from zotune.run import RunPaths
from zotune.session import Session
from zotune.snapshot import KEEP
from zotune.watch import Watch

_HASH = "0" * 64


def plan(config: TrainConfig, watch: Watch, run: Path | None = None, processes: int = 1) -> dict[str, Any]:
    """Predict a run of `config`, or what each of several processes of it takes. Reads the model's config and tokenizer,
    and the rows; no weight.

    Returns method (with lr and eps, in words), memory (bytes by term, peak, free, fits), forwards_per_step,
    seconds_per_step, seconds, disk (bytes by term) and, with the folder of a finished `run`, what that run measured.
    Raises what `zotune train` would raise for the same options.
    """
    device = device_of(config)
    session = Session(config, model=meta_model(config))
    optimizer = _built(session, watch)
    machine = calibrate(device, dtype_of(session.model), config.method, config.method_args, watch.say)
    if config.offload is not None:
        check_offload(optimizer.method, optimizer.direction, optimizer.rule, optimizer.parallel)
        watch.say("The time does not count how long blocks take to come to the device and back.")
    if config.scorer != "torch":
        check_served(config, alone=config.parallel is None)
        watch.say(f"Planned for the model's own forwards: what {config.scorer} takes beside it is not counted.")
    if config.parallel is not None and processes == 1:
        watch.say("Planned for one process. --processes says how many share its steps or its weights.")
    if processes > 1:
        watch.say("Each of the processes is planned; the time does not count what they wait for each other and send.")
    if isinstance(session.objective, Generated):
        most = session.objective.decoding.max_new_tokens
        watch.say(f"Every completion is planned with all of its {most} tokens; most may end before.")
    forecast = Forecast(session, optimizer, machine, Work(processes, config.parallel or "data"))
    memory = forecast.memory(device)
    step, below, evaluation, first = forecast.seconds()
    evaluations = (
        0 if session.eval_examples is None else 2 + (config.steps - 1) // (config.eval_every or config.steps + 1)
    )
    free = free_memory_bytes(device)
    disk = _disk(session, optimizer, forecast.offload)
    free_disk = free_disk_bytes(config.output_dir)
    seconds = config.steps * step + below + evaluations * evaluation + (first if evaluations else 0.0)
    return {
        "model": config.model,
        "method": f"{config.method}, {said(config, optimizer.defaults['lr'], optimizer.arguments.get('eps', 0))}",
        "parameters": sum(parameter.numel() for parameter in session.model.parameters()),
        "trained": sum(target.data.numel() for target in optimizer.perturber.targets()),
        "processes": processes,
        "forwards_per_step": session.forwards_per_step,
        "blocks_reused": forecast.reuse.depth,
        "memory": {**memory, "free": free, "fits": None if free is None else memory["peak"] <= free},
        "seconds_per_step": step,
        "seconds": seconds,
        "train_seconds": config.steps * step + below,
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
    rows = timing_of(paths.timing)
    return {
        "peak_memory_bytes": max((row.get("peak_memory_bytes", 0) for row in rows), default=None),
        "train_seconds": sum(row["seconds"] for row in rows) if rows else None,
        "journal_bytes": paths.journal.stat().st_size,
    }
