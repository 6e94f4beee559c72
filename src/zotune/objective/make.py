"""From a config to its objective: by its task, by the shape of its rows, or on what the model generates."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

from torch import nn

from zotune.config import TrainConfig
from zotune.data.source import Source
from zotune.errors import ConfigError
from zotune.objective.base import Objective
from zotune.objective.choice import Choice
from zotune.objective.from_config import decided, find_functions, generated
from zotune.objective.from_shape import BUILD
from zotune.objective.functions import Functions
from zotune.objective.generate import Decoding
from zotune.objective.model_kind import Kind, model_kind, most_positions, virtual_tokens
from zotune.objective.options import OptionLikelihood
from zotune.tasks import TASKS, find
from zotune.tasks.base import Task

_log = logging.getLogger(__name__)


def make_objective(
    config: TrainConfig,
    tokenizer: Any,
    model: nn.Module,
    source: Source | None = None,
    functions: Functions | None = None,
) -> Objective:
    """The objective of the config's task, or of the shape of its rows (the options alone decide it without a source).

    Of `model` no weight is read. `functions` are those that the config names; without them they are imported.
    Raises ConfigError for a task that has no prompt for this kind of model, and as `fitted`.
    """
    task = None if config.task is None else find(config.task, config.allow_task_code)
    kind, config = model_kind(model), fitted(_as_task(config, task), model)
    if config.generates:
        row = source.first.rows[0] if source is not None else {}
        return generated(config, tokenizer, kind, functions or find_functions(config), task, row)
    plain = _likelihood(config, tokenizer, kind, source, task)
    if config.objective in (None, "likelihood"):
        return plain
    # COPA's classes say which of a row's own two texts is right: they are no classes of rows.
    same = bool(config.label_words) if task is None else task.classes is not None and task.loss == "options"
    return decided(config, plain, same)


def _as_task(config: TrainConfig, task: Task | None) -> TrainConfig:
    """Where a generated answer ends, by a harness task's own file unless the config says otherwise."""
    if task is None or task.harness is None:
        return config
    default = config.max_new_tokens == TrainConfig.max_new_tokens
    most = task.harness.most_tokens if default else config.max_new_tokens
    stop = list(task.harness.stop) if config.stop is None else config.stop
    return dataclasses.replace(config, max_new_tokens=most, stop=stop)


def fitted(config: TrainConfig, model: nn.Module) -> TrainConfig:
    """The config with a `max_length` that the model has positions for, beside its virtual tokens.

    Raises ConfigError where new tokens leave no room for a prompt.
    """
    most, virtual = most_positions(model), virtual_tokens(model)
    if most is None:
        return config
    room = most - virtual
    if config.generates and config.max_new_tokens >= room:
        raise ConfigError(
            f"max_new_tokens {config.max_new_tokens} leaves no room for a prompt: the model reads {room} tokens at "
            "most. Remedy: lower --max-new-tokens."
        )
    if config.max_length <= room:
        return config
    if config.max_length != TrainConfig.max_length:  # what was asked for, not the default
        beside = f" beside {virtual} virtual tokens" if virtual else ""
        _log.warning("The model reads %d tokens at most%s, not max_length %d.", room, beside, config.max_length)
    return dataclasses.replace(config, max_length=room)


def _likelihood(config: TrainConfig, tokenizer: Any, kind: Kind, source: Source | None, task: Task | None) -> Objective:
    if task is None:
        shape = source.shape if source is not None else _shape_without_rows(config)
        return BUILD[shape](config, tokenizer, kind, source.first.rows if source is not None else [])
    render = task.masked if kind == "masked" else task.causal
    if render is None:
        other = "causal" if kind == "masked" else "masked"
        named = ", ".join(name for name, each in TASKS.items() if (each.masked if kind == "masked" else each.causal))
        raise ConfigError(
            f"task {task.name} has a prompt for {other} models only. Remedy: take such a model, or one of {named}."
        )
    if config.calibrated and (kind == "masked" or task.metric != "accuracy"):
        raise ConfigError(f"task {task.name} is not calibrated with this model. Remedy: leave --calibrated out.")
    harness, decoding = task.harness, None
    if harness is not None:  # where an answer ends, which `_as_task` put into the config
        decoding = Decoding(max_new_tokens=config.max_new_tokens, stop=tuple(config.stop or ()))
        if task.metric == "f1" and config.max_new_tokens >= config.max_length:
            raise ConfigError(
                f"answers of {config.max_new_tokens} tokens leave no room for a prompt in max_length "
                f"{config.max_length}. Remedy: lower --max-new-tokens, or raise --max-length."
            )
    choice = Choice(
        loss=task.loss,
        metric=task.metric,
        calibrated=config.calibrated,
        limits=task.limits if kind == "masked" else {},
        by_sum=harness is not None,
        normed=harness is not None and harness.normed and not config.calibrated,
        decoding=decoding,
    )
    return OptionLikelihood(tokenizer, render, kind, config.max_length, choice)


def _shape_without_rows(config: TrainConfig) -> str:
    if config.data_format is not None:
        return config.data_format
    return "label" if config.label_words else "completion" if config.completion_column is not None else "text"
