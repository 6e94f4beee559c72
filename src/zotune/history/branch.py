"""A new run that shares the first steps of another, with other options from there on. No model is loaded."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zotune.config import FIXED, INPUTS, NEVER_FROM_FILE, TrainConfig
from zotune.data.hub import EVAL, TRAIN, hub_rows
from zotune.data.source import load_source, read_part
from zotune.errors import ConfigError, DataError, RunError
from zotune.history.steps import check_step, count_steps, first_steps, hash_at, make_folder
from zotune.methods import METHODS
from zotune.nonfinite import skipped
from zotune.records import StepRecord, encode, encode_header
from zotune.resolve import config_of, resolve
from zotune.run import RunPaths

# What decides the rows of a task.
_OF_TASKS = ("task", "data_dir", "data_seed", "shots", "train_rows", "eval_rows", "eval_split", "eval")
# Options that name rows, and the split of those on the hub.
_ROWS = {"train": TRAIN, "eval": EVAL}


def branch(run: str | Path, step: int | None, to: Path, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Make the run folder `to` with the first `step` steps of `run` (None: all of them) and changed options.

    `zotune resume` continues it. The parent is only read. Raises RunError for a step that the run has not and for a
    folder `to` with content, ConfigError for an option of FIXED, for one of INPUTS where the method reads the layers'
    inputs, and for values that are wrong.
    """
    begun = time.perf_counter()
    paths = RunPaths(run).check()
    data = paths.journal.read_bytes()
    header, records, _ = paths.recorded()
    step = count_steps(records) if step is None else step
    check_step(paths.folder, step, records)
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise RunError(f"{to} is not empty. Remedy: name another folder.")
    config = _config(paths, header, to, changes)
    if config.steps < step:
        raise ConfigError(
            f"steps is {config.steps}, the branch shares {step} already. Remedy: --set steps=N with more."
        )
    new = {
        **header,
        "config": config.course(),
        **_rows(config, changes),
        "branch": {"step": step, "journal_sha256": hashlib.sha256(data).hexdigest()},
    }
    shared = first_steps(records, step)
    halving = config.on_nonfinite == "halve-eps"
    if halving != new.pop("halve_eps", False) and any(skipped(r) for r in shared if isinstance(r, StepRecord)):
        raise ConfigError(
            "on_nonfinite cannot be changed to or from halve-eps by this branch: a step that it shares was left out. "
            "Remedy: branch before it."
        )
    if halving:
        new["halve_eps"] = True
    files = {
        paths.config.name: config.to_yaml().encode(),
        paths.journal.name: encode_header(new) + b"".join(map(encode, shared)),
    }
    if paths.start.exists():
        files[paths.start.name] = paths.start.read_bytes()
    make_folder(to.absolute(), files)
    return {
        "run": str(to),
        "shared_steps": step,
        "steps": config.steps,
        "changed": {name: config.as_dict()[name] for name in sorted(changes)},
        "recorded_sha256": hash_at(shared, step),
        "seconds": time.perf_counter() - begun,
    }


def _config(paths: RunPaths, header: dict[str, Any], to: Path, changes: Mapping[str, Any]) -> TrainConfig:
    fixed = sorted({*FIXED, "output_dir", *NEVER_FROM_FILE} & set(changes))
    if fixed:
        raise ConfigError(
            f"{', '.join(fixed)} cannot be changed by a branch: the shared steps were taken with it. "
            "Remedy: start another run; --to names the folder."
        )
    method = config_of(paths).method
    reads = method in METHODS and not METHODS[method].replayable
    read = sorted(set(INPUTS) & set(changes)) if reads else []
    if read:
        raise ConfigError(
            f"{', '.join(read)} cannot be changed by a branch: {method} reads the layers' inputs, and a replay of the "
            "shared steps needs the same ones. Remedy: start another run."
        )
    config = resolve({**changes, "output_dir": to}, paths.config).absolute()
    recorded, now = header.get("config", {}), config.course()
    kept = (*FIXED, *(INPUTS if reads else ()))
    edited = [name for name in kept if name in recorded and name in now and recorded[name] != now[name]]
    if edited:
        raise RunError(
            f"{paths.config} was changed since the run began: {', '.join(edited)}. Remedy: restore it, then branch."
        )
    return config


def _rows(config: TrainConfig, changes: Mapping[str, Any]) -> dict[str, str]:
    """The header's hashes of the rows that the changes replace. Those of a task are read for it."""
    if config.task is not None and set(changes) & set(_OF_TASKS):
        source = load_source(config)
        return {"train_sha256": source.first.sha256, "eval_sha256": source.eval.sha256 if source.eval else ""}
    return {f"{n}_sha256": _sha256(getattr(config, n), split) for n, split in _ROWS.items() if n in changes}


def _sha256(path: Path | None, split: str) -> str:
    if path is None:
        return ""
    if hub_rows(path, split) is not None:
        return read_part(path, split).sha256
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Remedy: check the path.") from None
