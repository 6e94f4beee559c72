"""The rows of a task: official splits from the hub or a folder, and the parts of them that a run uses."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

from zotune.data.files import SUFFIXES, read_rows
from zotune.data.hub import load
from zotune.errors import ConfigError, DataError, UserError
from zotune.tasks.base import Task
from zotune.tasks.splits import TEST_SEED, Rows, k_shot, shuffled, train_and_dev

_log = logging.getLogger(__name__)

# How a column of a csv file is read: the first form that all of its cells have.
_PLAIN: tuple[tuple[re.Pattern[str], Callable[[str], Any]], ...] = (
    (re.compile(r"[+-]?[0-9]+"), int),
    (re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"), float),
    (re.compile(r"true|false", re.IGNORECASE), lambda text: text.lower() == "true"),
)
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
    if task.harness is not None:  # as the harness: all documents, or the first so many
        return train, _official(task, task.test, wanted.data_dir)[: wanted.eval_rows]
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
    rows = _read(task, split, data_dir)
    if task.harness is not None and task.harness.process is not None:
        rows = _processed(task, task.harness.process, rows)
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


def _read(task: Task, split: str, data_dir: Path | None) -> Rows:
    """The rows of an official split: from a folder, from the files that a task names, or from the hub."""
    files = None if task.harness is None else task.harness.files
    if data_dir is not None:
        if files is not None:
            _log.warning("%s: its own data_files are left aside for --data-dir.", task.name)
        paths: tuple[Path, ...] = (split_file(data_dir, split),)
    elif files is None:
        instead = "give --data-dir a folder with its files"
        return load(task.hub, task.subset, split, instead, f"task {task.name}: the data set", task.revision)
    elif split not in files:
        raise DataError(
            f"task {task.name}: data_files has no split {split!r}, it has {', '.join(files)}. Remedy: name it there."
        )
    else:
        paths = files[split]
    rows = [row for path in paths for row in read_rows(path)]
    plain = task.harness is None or not all(path.suffix.lower() in (".csv", ".tsv") for path in paths)
    return rows if plain else typed(rows)


def _processed(task: Task, process: Callable[[Any], Any], rows: Rows) -> Rows:
    """What a task's `process_docs` makes of a split, which it gets as the package datasets has it."""
    try:
        from datasets import Dataset
    except ImportError:
        raise UserError(
            f"task {task.name}: process_docs works on the package datasets, which is not installed. "
            "Remedy: pip install 'zotune[data]'."
        ) from None
    found = [dict(row) for row in process(Dataset.from_list(rows))]
    if not found:
        raise DataError(f"task {task.name}: process_docs leaves no row. Remedy: check it, or the data.")
    return found


def typed(rows: Rows) -> Rows:
    """Rows of a csv file with numbers and truth values where a whole column has them, as the package datasets reads it.

    To the harness a number is an index among the choices, a text one of them.
    """
    kinds = {
        name: next((read for form, read in _PLAIN if all(form.fullmatch(row[name]) for row in rows)), str)
        for name in rows[0]
    }
    return [{name: kinds[name](value) for name, value in row.items()} for row in rows]


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
