"""One model on several tasks: built-in ones, files of the lm-evaluation-harness, and its own where it is installed."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from zotune.config import TrainConfig
from zotune.errors import ConfigError, UserError
from zotune.load import load_model, load_tokenizer
from zotune.objective.make import fitted
from zotune.resolve import check_files
from zotune.revisit import replay_onto
from zotune.run import RunPaths
from zotune.session import Session
from zotune.tasks import Task, find
from zotune.watch import Watch

# The options that say what is evaluated: of a run's config they are about its own rows.
_OF_ROWS = (
    "train", "eval", "data_format", "task", "data_dir", "data_seed", "shots", "train_rows", "eval_rows", "eval_split",
    "calibrated", "text_column", "label_column", "completion_column", "template", "label_words", "labels", "objective",
    "reward", "reward_weights", "metric", "stop",
)  # fmt: skip
# Half the width of a 95 % interval, in standard errors.
_Z = 1.96


def evaluate_tasks(
    config: TrainConfig, run: str | Path | None, names: Sequence[str], given: Mapping[str, Any], watch: Watch
) -> dict[str, Any]:
    """Evaluate the weights that a run's journal leads to, or the bare model, on each task. Returns steps and tasks: for
    each its name and what an evaluation gives (accuracy or f1, low, high, loss, examples), or why it cannot be
    evaluated.

    `config` is the run's own, or one for the bare model; what it says of rows is left out, and `given` are the options
    of the user for all tasks. data_dir holds a folder for each task, or the one task's files. A name that is neither
    built in nor a file goes to lm-eval, with the model as it is in memory.
    Raises ConfigError for an unknown name, and the error of the first task where none can be evaluated.
    """
    if not names:
        raise ConfigError("tasks names none. Remedy: --tasks sst2,rte.")
    if run is not None:
        check_files(config, ("model", "sensitive"))
    found = [(name, _known(name, config.allow_task_code)) for name in names]
    model, steps = load_model(config), 0
    if run is not None:
        steps = replay_onto(RunPaths(run).check(), model, watch, config=config)["steps"]
    results, errors = [], list[UserError]()
    for name, task in found:
        watch.say(f"task {name}")
        try:
            values = _harness(config, model, name, given) if task is None else _own(config, model, name, task, given)
        except UserError as error:
            errors.append(error)
            values = {"error": str(error)}
        results.append({"task": name if task is None else task.name, **values})
    if len(errors) == len(names):
        raise errors[0]
    return {"steps": steps, "tasks": results}


def _known(name: str, allow_code: bool) -> Task | None:
    """The task, or None for a name that lm-eval may know. Raises ConfigError where there is nobody else to ask."""
    try:
        return find(name, allow_code)
    except ConfigError as error:
        if Path(name).suffix or not importlib.util.find_spec("lm_eval"):
            raise
        if name not in _manager().all_tasks:
            raise ConfigError(f"{error} lm-eval has no such task either.") from None
        return None


def _own(config: TrainConfig, model: nn.Module, name: str, task: Task, given: Mapping[str, Any]) -> dict[str, Any]:
    defaults = {item.name: item.default for item in dataclasses.fields(TrainConfig) if item.name in _OF_ROWS}
    values = {**defaults, **given, "task": name}
    folder = values["data_dir"]
    if folder is not None and (Path(folder) / task.name).is_dir():
        values["data_dir"] = Path(folder) / task.name
    session = Session(dataclasses.replace(config, **values).absolute(), model=model, training=False)
    found = session.evaluate()
    assert found is not None  # a task always has rows
    return found.as_dict()


def _manager() -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _harness(config: TrainConfig, model: nn.Module, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What lm-eval itself measures, with its own prompt and no demonstrations but the task's."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    size, limit = config.eval_batch_size, given.get("eval_rows")
    length = fitted(config, model).max_length
    wrapped = HFLM(pretrained=model, tokenizer=load_tokenizer(config), batch_size=size, max_length=length)
    most = None if limit is None else int(limit)
    try:
        found = simple_evaluate(wrapped, tasks=[name], limit=most, task_manager=_manager())
    except Exception as error:  # data sets that cannot be had, code of tasks: of many kinds
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"lm-eval cannot evaluate {name}: {said} Remedy: try `lm_eval --tasks {name}`.") from error
    if found is None or name not in found["results"]:
        raise UserError(f"lm-eval gives no result of its own for {name}. Remedy: name its parts.")
    named = {key.removesuffix(",none"): value for key, value in found["results"][name].items()}
    measured = {key: float(value) for key, value in named.items() if isinstance(value, float | int)}
    result: dict[str, Any] = {"examples": found["n-samples"][name]["effective"], "lm_eval": measured}
    for key, ours in (("acc", "accuracy"), ("exact_match", "exact_match"), ("f1", "f1")):
        if key in measured:
            half = _Z * measured.get(f"{key}_stderr", math.nan)
            around = {} if math.isnan(half) else {"low": measured[key] - half, "high": measured[key] + half}
            return {ours: measured[key], **around, **result}
    return result
