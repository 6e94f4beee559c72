"""Which shape a user's rows have, told from the columns of the first row. One rule per shape, in one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from zotune.errors import DataError

if TYPE_CHECKING:
    from zotune.config import TrainConfig


@final
@dataclass(frozen=True, slots=True)
class Shape:
    """columns: what a row must have to be of this shape. says: what is done with it."""

    columns: tuple[str, ...]
    says: str


SHAPES: Mapping[str, Shape] = {
    "text": Shape(("text",), "all tokens of the text are scored"),
    "label": Shape(("text", "label"), "label words are scored after the prompt; needs --label-words"),
    "completion": Shape(("prompt", "completion"), "the completion is scored after the prompt"),
    "messages": Shape(("messages",), "the assistant's turns are scored, in the tokenizer's chat template"),
    "sharegpt": Shape(("conversations",), "as messages, with from and value"),
    "alpaca": Shape(("instruction", "output"), "the output is scored after instruction and input"),
    "choices": Shape(("question", "choices", "answer"), "the choices are compared after the question"),
    "preference": Shape(("chosen", "rejected"), "the chosen answer is compared with the rejected one after the prompt"),
    "tokens": Shape(("input_ids",), "the tokens whose label is not -100 are scored"),
}
# The shape of rows whose completions are generated: whatever their columns, a prompt is all that is read.
PROMPT = "prompt"
# Columns that may stand for others.
_SAME = {"answer": ("answer", "answerKey")}


def says(shape: str) -> str:
    """A shape in words, for those who have what it needs."""
    done = "its completion is generated and scored" if shape == PROMPT else SHAPES[shape].says.partition(";")[0]
    return f"{shape}: {done}"


def has(row: Mapping[str, Any], column: str) -> bool:
    """Whether a row has a column, or one that stands for it."""
    return any(name in row for name in _SAME.get(column, (column,)))


def shape_of(config: TrainConfig, rows: Sequence[Mapping[str, Any]]) -> str:
    """The shape that the options or, without any that decide it, the first row's columns name.

    Raises DataError where no shape fits, and where several do.
    """
    row = rows[0]
    if config.generates:
        if config.template is None and "prompt" not in row and config.text_column not in row:
            raise DataError(
                f"there is no column 'prompt' to complete; columns found: {_listed(row)}. Remedy: rename one, or give "
                "--text-column or --template."
            )
        return PROMPT
    if config.data_format is not None:
        _need(row, config)
        return config.data_format
    if config.label_words:
        return "label"
    if config.completion_column is not None:
        return "completion"
    found = [
        name
        for name, shape in SHAPES.items()
        if name not in ("text", "label") and all(has(row, c) for c in shape.columns)
    ]
    if config.text_column in row:
        found.insert(0, "text")
    if len(found) > 1:
        fits = " and ".join(f"{name} ({SHAPES[name].says})" for name in found)
        raise DataError(
            f"the columns {_listed(row)} fit more than one shape: {fits}. Remedy: choose with --data-format "
            f"{' or '.join(found)}."
        )
    if not found:
        known = "; ".join(f"{name}: {', '.join(shape.columns)}" for name, shape in SHAPES.items())
        if "prompt" in row:
            raise DataError(
                f"the columns {_listed(row)} have a prompt and nothing to follow it. Remedy: name the column with "
                "--completion-column, or generate completions and score them: --reward, --metric, --objective f1."
            )
        raise DataError(
            f"Row 1 has no column {config.text_column!r}; columns found: {_listed(row)}. They fit no shape ({known}). "
            "Remedy: rename columns, or name them with --text-column, --label-column or --completion-column."
        )
    return found[0]


def _need(row: Mapping[str, Any], config: TrainConfig) -> None:
    """Raises DataError when the first row lacks a column of the shape that was asked for."""
    shape = config.data_format or ""
    named = {"text": config.text_column, "label": config.label_column, "completion": config.completion_column}
    if config.completion_column is not None:
        named["prompt"] = config.text_column
    # A template names its own columns, and says so when one is missing.
    columns = () if config.template and shape in ("label", "completion", "choices") else SHAPES[shape].columns
    missing = [named.get(c) or c for c in columns if not has(row, named.get(c) or c)]
    if missing:
        raise DataError(
            f"shape {shape} needs the column {missing[0]!r}; columns found: {_listed(row)}. "
            "Remedy: rename the column, or choose another --data-format."
        )


def _listed(row: Mapping[str, Any]) -> str:
    return ", ".join(map(str, row)) or "none"
