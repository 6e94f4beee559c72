"""What a task is: where its rows are, how a row reads, what is trained and what is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, final

from zotune.data.rendered import Classes, Render


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Harness:
    """What a task that comes from a file of the lm-evaluation-harness says beyond a built-in one's row.

    Its documents are evaluated in their order, all of them, and the accuracy is of the highest sum of
    log-probabilities, as there.

    files: those of each split, in place of a data set on the hub. process: `process_docs`, from a split to a split
    (`datasets.Dataset`). stop, most_tokens: where a generated answer ends. normed: whether the accuracy by sums over
    the candidates' lengths is measured too. notes: what the harness would do and is not done here, in words.
    """

    files: Mapping[str, tuple[Path, ...]] | None = None
    process: Callable[[Any], Any] | None = None
    stop: tuple[str, ...] = ()
    most_tokens: int = 256
    normed: bool = False
    notes: tuple[str, ...] = ()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One row of the table.

    hub, subset, revision: the data set on the hub, as files without a script. train, test: the official splits that are
    trained and tested on. causal: the prompt for decoders (and encoder-decoders), masked: the prompt for masked models;
    None where the task has none. loss: "options" compares all candidates, "target" is the log-likelihood of the right
    one alone. classes: the label, for k-shot splits and for leaving out rows without one. train_rows, dev_rows,
    test_rows: the sizes of MeZO's experiments. limits: the most tokens of a column that a masked model reads.
    digest: the SHA-256 of the file that a task was read from, empty for one of the table. untrained: why it has no
    rows to train on, empty for a task that has; it can be evaluated. harness: None for a task of the table.
    """

    name: str
    hub: str
    subset: str | None = None
    revision: str | None = None
    train: str = "train"
    test: str = "validation"
    causal: Render | None = None
    masked: Render | None = None
    loss: Literal["options", "target"] = "options"
    metric: Literal["accuracy", "f1"] = "accuracy"
    classes: Classes | None = None
    train_rows: int = 1000
    dev_rows: int = 500
    test_rows: int = 1000
    limits: Mapping[str, int] = field(default_factory=dict)
    digest: str = ""
    untrained: str = ""
    harness: Harness | None = None
