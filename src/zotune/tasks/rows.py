"""The rows of a task: official splits from the hub or a folder, and the parts of them that a run uses."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final

from zotune.data.files import SUFFIXES, read_rows
from zotune.data.hub import load
from zotune.errors import ConfigError, DataError
from zotune.tasks.base import Task
from zotune.tasks.splits import TEST_SEED, Rows, k_shot, shuffled, train_and_dev

_log = logging.getLogger(__name__)

# What a file of the official validation split may be called.
_VALIDATION = ("validation", "valid", "val", "dev")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which rows a run wants.

    part: what it is evaluated on. train_rows, eval_rows: other sizes than the task's. shots: rows per class in place of
    a random sample. seed: of the sample, not of the run. data_dir: a folder in place of the hub.
    """

    data_dir: Path | None = None
    part: Literal["dev", "test"] = "test"
    train_rows: int | None = None
    eval_rows: int | None = None
    shots: int | None = None
    seed: int = 0
    training: bool = True


def rows_of(task: Task, wanted: Wanted) -> tuple[Rows, Rows]:
    """Rows to train on (none unless `wanted.training`) and rows to evaluate on.

    Raises DataError for a folder that lacks a split, UserError where the hub cannot be had, ConfigError for a task that
    is not trained on.
    """
    train: Rows = []
    dev: Rows = []
    if wanted.training or wanted.part == "dev":
        if task.untrained:
            raise ConfigError(task.untrained)
        rows = _official(task, task.train, wanted.data_dir)
        if wanted.shots is not None:
            if task.classes is None:
                raise ConfigError(f"task {task.name} has no classes, so no --shots. Remedy: give --train-rows.")
            train, dev = k_shot(rows, _labels(task, rows), wanted.shots, wanted.seed)
        else:
            size = wanted.train_rows or task.train_rows
            held_out = wanted.eval_rows if wanted.part == "dev" and wanted.eval_rows else task.dev_rows
            train, dev = train_and_dev(rows, size, held_out, wanted.seed)
    if wanted.part == "dev":
        return train, dev[: wanted.eval_rows]
    seed = wanted.seed if wanted.shots is None else TEST_SEED
    test = shuffled(_official(task, task.test, wanted.data_dir), seed)
    return train, test[: wanted.eval_rows or task.test_rows]


def _labels(task: Task, rows: Rows) -> list[int]:
    assert task.classes is not None
    labels = []
    for number, row in enumerate(rows, start=1):
        try:
            labels.append(task.classes.index(row))
        except DataError as error:
            raise DataError(f"task {task.name}, train split, row {number}: {error}") from None
    return labels


def _official(task: Task, split: str, data_dir: Path | None) -> Rows:
    if data_dir is None:
        instead = "give --data-dir a folder with its files"
        rows = load(task.hub, task.subset, split, instead, f"task {task.name}: the data set", task.revision)
    else:
        rows = read_rows(split_file(data_dir, split))
    if task.classes is None:
        return rows
    try:
        known = [row for row in rows if task.classes.known(row)]
    except DataError as error:
        raise DataError(f"task {task.name}, {split} split: {error}") from None
    if len(known) < len(rows):
        _log.info(
            "%d of %d rows of the %s split have no label and are left out.", len(rows) - len(known), len(rows), split
        )
    if not known:
        raise DataError(f"no row of task {task.name}'s {split} split has a label. Remedy: use a split with labels.")
    return known


def split_file(folder: Path, split: str) -> Path:
    """The file of a split in a folder: `train.jsonl`, `validation.csv`, `dev.parquet`, and so on.

    Raises DataError when there is none, or more than one.
    """
    names = [split]
    if split.startswith("validation"):
        names += [*(split.replace("validation", name) for name in _VALIDATION[1:]), *_VALIDATION]
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder. Remedy: give --data-dir a folder with a file for each split.")
    for name in dict.fromkeys(names):
        found = [folder / (name + suffix) for suffix in SUFFIXES if (folder / (name + suffix)).is_file()]
        if len(found) > 1:
            raise DataError(f"{folder} has several files of the {split} split: {_listed(found)}. Remedy: leave one.")
        if found:
            return found[0]
    there = _listed(path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES)
    raise DataError(
        f"{folder} has no file of the {split} split; data files found: {there}. "
        f"Remedy: name it {' or '.join(f'{name}.jsonl' for name in dict.fromkeys(names))} (or another format)."
    )


def _listed(paths: Iterable[Path]) -> str:
    return ", ".join(path.name for path in paths) or "none"
