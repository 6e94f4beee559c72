"""From a YAML file and flags to a `TrainConfig`. Flags win; unknown keys are errors that name the nearest.

torch is imported only to ask the method table which arguments a method takes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from zotune.arguments import nearest as in_letters
from zotune.config import NEVER_FROM_FILE, OPTIONS, TrainConfig
from zotune.errors import ConfigError, DataError
from zotune.option import flag
from zotune.run import RunPaths

MAX_FILE_BYTES = 2**20
# The options that name what a run reads, all of which may lie elsewhere by now.
FILES = ("model", "train", "eval", "task", "data_dir", "sensitive")
# What transformers, TRL and other tools call an option: the letters alone would lead elsewhere, or nowhere.
ALIASES: Mapping[str, str] = {
    "learning_rate": "lr", "epsilon": "eps", "zo_eps": "eps", "perturbation": "eps", "batch": "batch_size",
    "bs": "batch_size", "train_batch_size": "batch_size", "per_device_train_batch_size": "batch_size",
    "per_device_eval_batch_size": "eval_batch_size", "max_steps": "steps", "iterations": "steps",
    "gradient_accumulation_steps": "micro_batch_size", "model_name_or_path": "model", "model_name": "model",
    "base_model": "model", "dataset": "train", "data": "train", "train_file": "train", "validation_file": "eval",
    "test": "eval", "test_file": "eval", "optimizer": "method", "optim": "method", "lr_scheduler": "lr_schedule",
    "lr_scheduler_type": "lr_schedule", "scheduler": "lr_schedule", "max_seq_length": "max_length",
    "seq_len": "max_length", "wd": "weight_decay", "report_to": "track", "save_steps": "snapshot_every",
    "eval_steps": "eval_every", "prompt_template": "template", "verbalizer": "label_words", "precision": "dtype",
    "torch_dtype": "dtype", "bf16": "dtype", "fp16": "dtype", "load_in_4bit": "quantize", "load_in_8bit": "quantize",
}  # fmt: skip
_EPOCHS = ("epochs", "epoch", "num_epochs", "num_train_epochs")


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint with the most similar known name, or the one that means what other tools call so; empty when nothing is
    near.
    """
    known, name = set(known), name.lstrip("-").replace("-", "_").lower()
    if name in _EPOCHS and "steps" in known:
        return " Training is counted in 'steps': an epoch is as many as there are rows, divided by batch_size."
    if ALIASES.get(name) in known:
        return f" The nearest is {ALIASES[name]!r}."
    return in_letters(name, known)


def method_arguments(method: str) -> set[str]:
    """The arguments of a method beyond the options (imports torch). Raises ConfigError for no method."""
    from zotune.methods import accepts, table

    names = [row["name"] for row in table()]
    if method not in names:
        raise ConfigError(f"unknown method {method!r}.{nearest(method, names)} Remedy: use one of {', '.join(names)}.")
    return set(accepts(method)) - set(OPTIONS)


def read_file(path: str | Path) -> tuple[dict[str, Any], dict[str, int]]:
    """The values of a YAML file and the line of each key. Runs no code. Raises ConfigError."""
    from zotune.yaml12 import parse_mapping

    path = Path(path)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}. Remedy: check the path.") from error
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{path} is larger than 1 MiB, so it is no config. Remedy: check the path.")
    values, lines = parse_mapping(data, str(path))
    for name in NEVER_FROM_FILE:
        if values.pop(name, False):
            raise ConfigError(
                f"{path} line {lines[name]}: {name} cannot be set by a file. Remedy: remove it there and "
                f"pass {flag(name)} if you trust that code."
            )
    return values, lines


def resolve(
    flags: Mapping[str, Any],
    file: str | Path | None = None,
    arguments_of: Callable[[str], set[str]] = method_arguments,
) -> TrainConfig:
    """A config from a YAML file and from flags, which win. The method's arguments may stand among the keys.

    `arguments_of(method)` gives the accepted ones. Raises ConfigError, naming file, line and the nearest key.
    """
    values, lines = read_file(file) if file is not None else ({}, {})
    where = {name: f"{file} line {line}: " for name, line in lines.items()}
    method = str({**values, **flags}.get("method", TrainConfig.method))
    accepted = arguments_of(method)
    options: dict[str, Any] = {}
    arguments: dict[str, Any] = {}
    for given, places in ((values, where), (dict(flags), {})):
        nested = _nested(given.pop("method_args", None), places.get("method_args", ""))
        arguments.update(nested)
        for name, value in given.items():
            (options if name in OPTIONS else arguments)[name] = value
        for name in {**nested, **given}:
            if name not in accepted and (name in nested or name not in OPTIONS):
                raise unknown_option(name, method, accepted, places.get(name, ""))
    return TrainConfig(**_required(options), method_args=arguments)


def config_of(paths: RunPaths, trust_remote_code: bool = False, allow_task_code: bool = False) -> TrainConfig:
    """The run's own config; the folder may have been moved since. Only the caller can allow code of others."""
    allowed = {"trust_remote_code": trust_remote_code, "allow_task_code": allow_task_code}
    return resolve({"output_dir": paths.folder, **allowed}, paths.config)


def check_files(config: TrainConfig, names: Iterable[str] = FILES) -> None:
    """Raises DataError for the first option among `names` whose file or folder is not where a run's config has it.

    `config` is the run's own (`config_of`).
    """
    for name in names:
        value = getattr(config, name)
        # A model that is no whole path is one of the hub, such a task is built in.
        if value is not None and Path(value).is_absolute() and not Path(value).exists():
            file = RunPaths(config.output_dir).config
            raise DataError(f"{value} does not exist any more. Remedy: correct `{name}:` in {file}.")


def _required(values: dict[str, Any]) -> dict[str, Any]:
    for item in dataclasses.fields(TrainConfig):
        required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        if item.name == "train" and values.get("train") is None and values.get("task") is None:
            raise ConfigError(
                "train is missing. Remedy: give --train, or train: in the config; or --task in its place."
            )
        if required and values.get(item.name) is None:
            raise ConfigError(f"{item.name} is missing. Remedy: give {flag(item.name)}, or {item.name}: in the config.")
    return values


def _nested(value: Any, place: str) -> dict[str, Any]:
    if value is not None and not isinstance(value, Mapping):
        raise ConfigError(f"{place}method_args is {value!r}. Remedy: give names and values: {{rank: 2}}.")
    return {str(name): item for name, item in (value or {}).items()}


def _takers(name: str) -> list[str]:
    """The methods that take an argument."""
    from zotune.methods import accepts, table

    return [row["name"] for row in table() if name in accepts(row["name"])]


def unknown_option(name: str, method: str, accepted: set[str], place: str = "") -> ConfigError:
    """What somebody is told who gives a method an argument that it does not take; `accepted` are those it takes."""
    if name in OPTIONS:
        return ConfigError(
            f"{place}{name} is an option of its own. Remedy: take it out of method_args and give {flag(name)}."
        )
    takes = f"the method {method} takes {', '.join(sorted(accepted)) or 'no arguments of its own'}"
    others = _takers(name)
    hint = f" It is an argument of {', '.join(others)}." if others else nearest(name, {*OPTIONS, *accepted})
    return ConfigError(
        f"{place}unknown option {name!r}.{hint} Remedy: remove it or correct its "
        f"name; {takes}; the other options stand in `zotune train --help`."
    )
