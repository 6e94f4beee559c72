"""What one can do with a run that is there: replay it, evaluate it, list it. The run folder is only read."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from zotune.config import TrainConfig
from zotune.data.hub import EVAL, TRAIN, hub_rows, placed
from zotune.errors import ConfigError, DataError, RunError
from zotune.journal import StepRecord
from zotune.load import load_to_replay, load_tokenizer
from zotune.model_folder import refuse_filled, save_folder
from zotune.nonfinite import mean_loss, replay_step
from zotune.objective.from_config import functions_of_run
from zotune.objective.functions import Functions
from zotune.optimizer import ZerothOrder
from zotune.rebuild import apply, rebuild
from zotune.resolve import FILES, check_files, config_of
from zotune.run import RunPaths
from zotune.session import Session, check_same
from zotune.watch import Watch
from zotune.weights import base_sha256

if TYPE_CHECKING:
    from zotune.engines.offload import Offload


def replay(
    run: str | Path,
    verify: bool,
    watch: Watch,
    to: Path | None = None,
    trust_remote_code: bool = False,
    force: bool = False,
) -> dict[str, Any]:
    """Rebuild a run's weights from base model and journal, and from its rows where the method reads the layers' inputs.

    `to` is a folder that gets the model in Hugging Face format; one with content is replaced only with `force`. Raises
    RunError for another base model and, with `verify`, unless the last recorded hash is that of the run's last step and
    of the weights found.
    """
    begun = time.perf_counter()
    paths = RunPaths(run).check()
    if to is not None:
        refuse_filled(to, force)
    config = config_of(paths, trust_remote_code)
    model, offload = load_to_replay(config)
    found = replay_onto(paths, model, watch, None, offload, config)
    if verify and not found["verified"]:
        raise RunError(
            f"{paths.folder}: the journal has no hash of its last step, {found['steps']}. "
            f"Remedy: `zotune resume {paths.folder}` finishes the run."
        )
    if to is not None:
        save_folder(model, load_tokenizer(config), to, force)
    return {**found, "journal_bytes": paths.journal.stat().st_size, "seconds": time.perf_counter() - begun}


def evaluate_run(
    config: TrainConfig, run: str | Path | None, watch: Watch, trust_reward: bool = False
) -> dict[str, Any]:
    """Accuracy (or what else the objective measures) and loss on `config.eval`: of the weights that a run's journal
    leads to, or of the bare model.

    `config` is the run's own, with other evaluation rows perhaps; functions that it names are imported for a bare
    model, and for a run only with `trust_reward`. The run folder is only read. Raises DataError for what has moved; the
    training rows are needed for the order of the labels alone.
    """
    if run is not None:
        config = _with_files(config, RunPaths(run).check())
    functions = functions_of_run(config, trust_reward or run is None, Functions())
    session, steps = Session(config, training=False, functions=functions), 0
    if run is not None:
        paths, offload = RunPaths(run).check(), session.offload
        steps = replay_onto(paths, session.model, watch, None, offload, config, functions)["steps"]
    found = session.evaluate()
    if found is None:
        raise ConfigError("there are no rows to evaluate on. Remedy: --eval FILE.")
    watch.eval(steps, {key: value for key, value in found.as_dict().items() if value is not None})
    return found.as_dict() | {"steps": steps}


def _with_files(config: TrainConfig, paths: RunPaths) -> TrainConfig:
    """The config, once what it has of the run's own is there; training rows that are not give way to the held-out ones,
    which stand for them at a bare model too.
    """
    own, asked = config_of(paths).absolute(), config.absolute()
    kept = [name for name in FILES if getattr(asked, name) == getattr(own, name)]
    check_files(own, [name for name in kept if name != "train"])
    if "train" not in kept or own.train is None or config.eval is None:
        return config
    if own.train.exists() or hub_rows(own.train, TRAIN) is not None:
        return config
    if config.label_words and config.labels is None:
        raise DataError(
            f"{own.train} does not exist any more, and its rows tell the order of the labels. Remedy: correct `train:` "
            f"in {paths.config}, or give --labels, in the order of the words."
        )
    return dataclasses.replace(config, train=placed(config.eval, EVAL))


def replay_onto(
    paths: RunPaths,
    model: nn.Module,
    watch: Watch,
    steps: int | None = None,
    offload: Offload | None = None,
    config: TrainConfig | None = None,
    functions: Functions | None = None,
) -> dict[str, Any]:
    """Fold a run's journal (its first `steps` steps) into its base model, checking every hash recorded on the way.

    config tells what code was allowed to run (none without it); functions: what the run names, if that was imported.
    """
    header, records, torn = paths.recorded()
    if torn:
        watch.say(f"{paths.journal} ends in {torn} bytes of an unfinished record; they are left out.")
    optimizer, fold = replayer(paths, header, model, watch, offload, config, functions)
    return apply(optimizer, records, steps, fold)


def replayer(
    paths: RunPaths,
    header: dict[str, Any],
    model: nn.Module,
    watch: Watch,
    offload: Offload | None = None,
    config: TrainConfig | None = None,
    functions: Functions | None = None,
) -> tuple[ZerothOrder, Callable[[StepRecord], None]]:
    """The optimizer of a run at step 0 on `model`, and what folds a recorded step into it.

    A method that reads the layers' inputs is shown the run's rows again. Raises RunError unless base model and rows are
    those that the run began from, ConfigError where its rows are scored by code that was not imported.
    """
    optimizer = optimizer_on(paths, header, model, offload)
    if not optimizer.direction.reads_inputs:
        return optimizer, partial(replay_step, optimizer)
    watch.say(f"{optimizer.method} reads the layers' inputs: its steps are replayed with the run's rows.")
    own = config_of(paths, *((config.trust_remote_code, config.allow_task_code) if config is not None else ()))
    session = Session(own, functions=functions_of_run(own, False, functions or Functions()), model=model).begin()
    check_same(header, session.header(), paths)
    return session.optimizer, session.replay


def optimizer_on(
    paths: RunPaths, header: dict[str, Any], model: nn.Module, offload: Offload | None = None
) -> ZerothOrder:
    """The optimizer of a run at step 0 on `model`. Raises RunError unless that is the base the run began from."""
    base = base_sha256(model)
    optimizer = rebuild(header, model, offload=offload)
    if header.get("base_sha256") not in (None, base):
        raise RunError(
            f"the base model of {paths.folder} has changed since the run began: its weights hash to "
            f"{base[:16]}..., the journal recorded {header['base_sha256'][:16]}... "
            f"Remedy: restore it, or put where it lies now as model: into {paths.config}."
        )
    return optimizer


def log_rows(run: str | Path) -> Sequence[dict[str, Any]]:
    """The journal as rows: step, lr, losses, their mean, and the projected gradient of the first probe.

    The last one is what the run's metrics say: how losses become coefficients is the method's own.
    """
    paths = RunPaths(run).check()
    records, rows = paths.recorded()[1], []
    slopes = {row["step"] - 1: row["projected_gradient"] for row in paths.logged() if "projected_gradient" in row}
    for record in records:
        if isinstance(record, StepRecord):
            lr = record.lrs[0] if record.lrs else None
            row: dict[str, Any] = {"step": record.step, "lr": lr, "losses": list(record.losses)}
            row["loss"] = mean_loss(record.losses)
            if math.isfinite(slopes.get(record.step, math.nan)):  # a step that was left out has none
                row["projected_gradient"] = slopes[record.step]
            rows.append(row)
    return rows
