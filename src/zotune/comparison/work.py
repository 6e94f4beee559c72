"""One row of a comparison, in a process of its own: `python -m zotune.comparison.work`, with the row on stdin.

Of its own, so that the peak of its memory is that of the row alone, and that nothing it does reaches another row.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from zotune.comparison.rows import DEMONSTRATIONS, GRADIENTS, Row, comparable
from zotune.config import TrainConfig
from zotune.durable import json_line, write_file
from zotune.errors import ConfigError, RunError, UserError
from zotune.logged import timing_of
from zotune.presets import tuned_for, with_preset
from zotune.run import RunPaths
from zotune.watch import Console, Watch

# Directions along which a row without a learning rate is measured.
_DIRECTIONS = 4


def measure(row: Row, watch: Watch) -> dict[str, Any]:
    """What the row's evaluation gives (loss, accuracy or another metric, low, high, examples), and: scope, trained,
    lr, eps, steps, forwards and backwards of its training, seconds of the training (of rows that train nothing: of all
    they do), peak_memory_bytes, train_sha256 and eval_sha256. None where a row has none. Raises UserError.
    """
    work = _WORK.get(row.kind) or (_gradients if row.kind in GRADIENTS else _zeroth_order)
    return {"row": row.name, "method": row.kind, **work(row, watch)}


def _zero_shot(row: Row, watch: Watch) -> dict[str, Any]:
    return _untrained(row, lambda session: (session.evaluate(), 0))


def _in_context(row: Row, watch: Watch) -> dict[str, Any]:
    from zotune.baselines import in_context

    shown = {"shots": row.given[DEMONSTRATIONS]} if DEMONSTRATIONS in row.given else {}
    return _untrained(row, lambda session: (in_context(session, **shown), 0))


def _linear_probe(row: Row, watch: Watch) -> dict[str, Any]:
    from zotune.baselines import linear_probe

    batches = row.config.eval_batch_size
    return _untrained(row, lambda session: (linear_probe(session), -(-len(session.examples) // batches)))


_WORK: Mapping[str, Callable[[Row, Watch], dict[str, Any]]] = {
    "zero-shot": _zero_shot,
    "in-context": _in_context,
    "linear-probe": _linear_probe,
}


def _untrained(row: Row, of: Callable[[Any], tuple[Any, int]]) -> dict[str, Any]:
    from zotune.machine import peak_memory_bytes
    from zotune.session import Session

    session = Session(row.config)
    begun = time.perf_counter()
    found, forwards = of(session)
    if found is None:
        raise ConfigError("there are no rows to evaluate on. Remedy: --eval FILE.")
    return {
        **found.as_dict(),
        "scope": None,
        "forwards": forwards,
        "seconds": time.perf_counter() - begun,
        "peak_memory_bytes": peak_memory_bytes(session.device),
        "train_sha256": session.train_sha256,
        "eval_sha256": session.eval_sha256,
    }


def _gradients(row: Row, watch: Watch) -> dict[str, Any]:
    from zotune.baselines import first_order
    from zotune.session import Session

    session = Session(row.config)
    steps = row.config.steps if "steps" in row.given else None
    found = first_order(session, row.kind, row.config.lr, steps, watch)  # type: ignore[arg-type]
    return {
        **found.evaluation.as_dict(),
        **{name: getattr(found, name) for name in ("lr", "steps", "trained", "forwards", "seconds")},
        "scope": row.config.scope,
        "backwards": found.forwards,
        "peak_memory_bytes": found.peak_memory_bytes,
        "train_sha256": session.train_sha256,
        "eval_sha256": session.eval_sha256,
    }


def _zeroth_order(row: Row, watch: Watch) -> dict[str, Any]:
    """A run in its folder; one that is there goes on."""
    from zotune.journal import StepRecord
    from zotune.resolve import config_of
    from zotune.train import resume, train

    paths = RunPaths(row.config.output_dir)
    paths.refuse_links()
    begun = paths.config.exists() and paths.holds_run()
    config, own = row.config, config_of(paths) if begun else None
    if own is not None:  # what the row does not say is what its run began with
        missing = [name for name in ("lr", "eps") if getattr(config, name) is None]
        config = dataclasses.replace(config, **{name: getattr(own, name) for name in missing})
    elif row.tuned:
        lr, eps = _measured(config, watch)
        config = dataclasses.replace(config, lr=lr, eps=eps, tuned=tuned_for(lr, config.method, config.scope))
    else:
        config = with_preset(config)
    if begun:
        _check_same(paths, config)
        # Its config equals the one that the user gave: what it names is the user's own.
        result = resume(
            paths.folder,
            watch,
            config.trust_remote_code,
            trust_reward=True,
            allow_task_code=config.allow_task_code,
        )
    else:
        result = train(config, watch)
    header, records, _ = paths.recorded()
    timing = timing_of(paths.timing)
    after = {name.removesuffix("_after"): value for name, value in result.items() if name.endswith("_after")}
    return {
        **after,
        **{name: value for name, value in result.items() if name.endswith("_before")},
        "examples": result.get("eval_examples"),
        "scope": config.scope,
        "trained": sum(math.prod(each["shape"]) for each in header["parameters"]),
        "lr": max((record.lrs[0] for record in records if isinstance(record, StepRecord)), default=config.lr),
        "eps": header["arguments"].get("eps"),
        "steps": result["steps"],
        "forwards": result["forwards"],
        "seconds": sum(each["seconds"] for each in timing),
        "continued": begun,  # a process that was stopped wrote down no time: the seconds are those of the others
        "peak_memory_bytes": max((each.get("peak_memory_bytes", 0) for each in timing), default=0),
        "train_sha256": header["train_sha256"],
        "eval_sha256": header["eval_sha256"],
    }


def _measured(config: TrainConfig, watch: Watch) -> tuple[float, float]:
    """lr and eps as `zotune tune` finds them on the training rows."""
    from zotune.tune import tune

    found = tune(config, watch, _DIRECTIONS)
    watch.say(f"lr {found['lr']:g}, eps {found['eps']:g}")
    return found["lr"], found["eps"]


def _check_same(paths: RunPaths, config: TrainConfig) -> None:
    """Raises RunError unless the run that is there began with these very options."""
    from zotune.resolve import config_of

    own = config_of(paths, config.trust_remote_code, config.allow_task_code)
    before, now = comparable(own), comparable(config)
    other = [f"{name} {before[name]!r} (now {now[name]!r})" for name in now if before[name] != now[name]]
    if other:
        raise RunError(f"{paths.folder} began with {'; '.join(other)}. Remedy: choose another --output-dir.")


def main() -> int:
    """Measure the row that stands on stdin and write what was found, or why nothing was, into the file it names."""
    job = json.loads(sys.stdin.readline())
    row, path = Row.of_job(job["row"]), Path(job["result"])
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    try:
        found = measure(row, Console())
    except UserError as error:
        found = {"row": row.name, "error": str(error)}
    except Exception as error:
        if not (isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"):
            traceback.print_exc()
        said = (str(error).strip() or "no message").splitlines()[0]
        found = {"row": row.name, "error": f"{type(error).__name__}: {said}"}
    write_file(path, (json_line(found | {"settings": job["settings"]}) + "\n").encode())
    return 0


def _leave_with_parent() -> None:
    """Stdin ends when the process that wrote the row is gone: then nobody waits for this one."""
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
