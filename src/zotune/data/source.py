"""The rows of a run: from files or from a task, with their fingerprints and what they are called in messages."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, final

from zotune.config import TrainConfig
from zotune.data.files import read_rows
from zotune.data.hub import EVAL, TRAIN, hub_rows
from zotune.data.shapes import says, shape_of
from zotune.errors import DataError

_log = logging.getLogger(__name__)

Rows = list[dict[str, Any]]


@final
@dataclass(frozen=True, slots=True)
class Part:
    """Rows, their SHA-256 (of the file; of the rows themselves for a task and the hub), and what messages call them."""

    rows: Rows
    sha256: str
    name: str


@final
@dataclass(frozen=True, slots=True)
class Source:
    """train: None only where a task is evaluated without training. shape: the rows' shape, empty for a task."""

    train: Part | None
    eval: Part | None
    shape: str

    @property
    def first(self) -> Part:
        """The rows that are there whatever is done."""
        part = self.eval if self.train is None else self.train
        assert part is not None
        return part

    def says(self) -> str:
        """The shape in words, empty for a task."""
        return says(self.shape) if self.shape else ""


def load_source(config: TrainConfig, training: bool = True) -> Source:
    """Read what the config names. Raises DataError for rows that cannot be read or have no clear shape."""
    if config.task is not None:
        return _of_task(config, training)
    assert config.train is not None
    train = read_part(config.train, TRAIN)
    try:
        shape = shape_of(config, train.rows)
    except DataError as error:
        raise DataError(f"{train.name}: {error}") from None
    return Source(train, read_part(config.eval, EVAL) if config.eval else None, shape)


def read_part(path: Path, split: str) -> Part:
    """The rows of a file, or of a data set on the hub: of `split` unless it says which."""
    found = hub_rows(path, split)
    if found is not None:
        return _part(found.read(), str(found))
    rows = read_rows(path)
    return Part(rows, sha256(path.read_bytes()).hexdigest(), str(path))


def _of_task(config: TrainConfig, training: bool) -> Source:
    from zotune.tasks import find
    from zotune.tasks.rows import Wanted, rows_of

    assert config.task is not None
    task = find(config.task, config.allow_task_code)
    if task.harness is not None and task.harness.notes:
        _log.warning("%s: %s (docs/tasks.md).", config.task, "; ".join(task.harness.notes))
    wanted = Wanted(
        data_dir=config.data_dir,
        part=config.eval_split,
        train_rows=config.train_rows,
        eval_rows=config.eval_rows,
        shots=config.shots,
        seed=config.data_seed,
        training=training,
    )
    train, held_out = rows_of(task, wanted)
    if training and not train:
        raise DataError(f"task {task.name} has no rows left to train on. Remedy: lower --eval-rows or --shots.")
    evaluated = (
        read_part(config.eval, EVAL) if config.eval else _part(held_out, f"task {task.name}, {config.eval_split} rows")
    )
    return Source(_part(train, f"task {task.name}, training rows", task.digest) if training else None, evaluated, "")


def _part(rows: Rows, name: str, task: str = "") -> Part:
    """The hash is of the rows as JSON: the same from the hub and from a folder that holds the same values.

    `task` is the hash of the task's own file, where it has one.
    """
    digest = sha256(task.encode())
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass"))
        digest.update(b"\n")
    return Part(rows, digest.hexdigest(), name)
