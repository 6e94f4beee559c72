"""What a run says before its first step: what is trained, on what, at which price."""

from __future__ import annotations

from typing import Any

from zotune.advice import check_lr, check_words
from zotune.forecast import foreseen, said
from zotune.presets import check_tuned, measured
from zotune.presets import said as rates
from zotune.records import StepRecord, encode
from zotune.session import Session
from zotune.watch import Quiet, Watch, size


def say_versions(recorded: dict[str, Any], now: dict[str, Any], watch: Watch) -> None:
    """Another version may round otherwise: the recorded hashes still decide, but the reason should be known before."""
    named = [key for key in ("zotune", "torch") if key in recorded]
    other = [f"{key} {recorded[key]} (now {now[key]})" for key in named if recorded[key] != now[key]]
    before, after = recorded.get("functions", {}), now.get("functions", {})
    changed = [name for name in after if before.get(name) != after[name]]
    if changed:
        watch.say(
            f"The code of {', '.join(changed)} has changed since the run began: its steps to come follow the new."
        )
    if other:
        watch.say(f"The run began with {', '.join(other)}: its steps to come may differ in their last bits.")


def _kept(session: Session) -> str:
    """The line about what recording costs."""
    config, optimizer = session.config, session.optimizer
    losses = (0.0,) * len(optimizer.estimator.points(config.seed, 0))
    record = len(encode(StepRecord(0, (0.0,) * len(optimizer.param_groups), losses)))
    if config.snapshot_every > config.steps:
        return f"a record of {record} bytes each step, no snapshot"
    scope = sum(target.data.numel() * target.data.element_size() for target in optimizer.perturber.targets())
    return f"a record of {record} bytes each step, a snapshot of {size(scope)} every {config.snapshot_every}"


def _graphs(session: Session) -> dict[str, str]:
    recorder = getattr(session.optimizer.evaluator, "recorder", None)
    if recorder is None:
        return {}
    return {"graphs": f"none ({recorder.reason})" if recorder.reason else "forwards are recorded and played"}


def _shared_out(session: Session) -> dict[str, str]:
    """The line about the processes, where there are several."""
    group, parallel = session.group, session.optimizer.parallel
    return {} if group is None or parallel is None else {"processes": f"{group.size}, parallel over {parallel.mode}"}


def say_header(session: Session, watch: Watch) -> dict[str, int]:
    """The header. Returns `foreseen_memory_bytes` for the result, where it was looked for: nobody hears Quiet."""
    if isinstance(watch, Quiet):
        return {}
    config, optimizer, reuse, group = session.config, session.optimizer, session.reuse, session.group
    count = sum(target.data.numel() for target in optimizer.perturber.targets())
    total = sum(parameter.numel() for parameter in session.model.parameters())
    lanes, lr = optimizer.evaluator, optimizer.defaults["lr"]
    batch = "batch of prompts" if session.objective.goes_on else "batch"
    terms = foreseen(session)
    together = "one batch for both sides" if lanes.mode == "lanes" else f"one at a time ({lanes.reason})"
    watch.header(
        {
            "model": f"{config.model} ({total:,} parameters, {config.dtype}, {session.device})",
            "method": f"{config.method}, {rates(config, lr, optimizer.arguments.get('eps', 0))}",
            "trained": f"{count:,} parameters (scope {session.scope})",
            "data": f"{len(session.examples):,} examples in {len(session.units):,} fixed batches",
            "rows": session.data,
            **({"objective": session.objective.says} if session.objective.says else {}),
            "step": f"{session.forwards_per_step} forwards, {together}",
            "reused": f"{reuse.depth} blocks below the scope run once per {batch}"
            if reuse.depth
            else f"nothing: {reuse.reason}",
            **_graphs(session),
            **_shared_out(session),
            **({} if session.server is None else {"scorer": session.server.says()}),
            **({"memory": said(terms)} if terms else {}),
            **({} if session.offload is None else {"offload": session.offload.says()}),
            "kept": _kept(session),
            "run": str(config.output_dir),
        }
    )
    if config.parallel is not None and group is None:
        does = "workers of a pool share the work" if session.pool is not None else "this process does all the work"
        watch.say(f"parallel {config.parallel} is not used: {does}. torchrun starts processes that share it.")
    if (
        config.label_words
        and session.examples
        and (told := check_words(config.label_words, session.examples[0].options))
    ):
        watch.say(told)
    for warning in (
        check_tuned(config, lr),
        None if measured(config, lr) else check_lr(lr, count, config.method, config.scope),
    ):
        if warning:
            watch.say(warning)
    return {"foreseen_memory_bytes": terms["peak"]} if terms else {}
