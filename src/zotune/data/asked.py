"""A row as a question to the model: the prompt whose completion is scored, and what a function is told of the row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from zotune.data import chat
from zotune.data.rendered import Render, Row, from_json
from zotune.data.template import Template
from zotune.errors import DataError

# What TRL gives a reward function under names of its own: no column is passed on under them.
_RESERVED = ("prompt", "completion", "prompts", "completions", "completion_ids", "predictions", "references")


@final
@dataclass(frozen=True, slots=True)
class Asked:
    """prompt: what the model reads. shown: what a function is given as the prompt: the same text, or messages.

    references: texts that are right, none where the row has none. columns: the row without reserved names.
    """

    prompt: str
    shown: Any
    references: tuple[str, ...]
    columns: Mapping[str, Any]


Ask = Callable[[Row], Asked]


def ask_template(template: Template, reference: str | None) -> Ask:
    """Rows whose prompt is a template over the columns; `reference` is the column with what is right, if any."""

    def ask(row: Row) -> Asked:
        prompt = template.render(row)
        return Asked(prompt, prompt, _references(row, reference), _columns(row))

    return ask


def ask_chat(tokenizer: Any, column: str, reference: str | None) -> Ask:
    """Rows whose prompt is a list of messages, in the tokenizer's chat template; the assistant's turn comes next."""

    def ask(row: Row) -> Asked:
        shown, prompt = chat.question(tokenizer, row, column)
        return Asked(prompt, shown, _references(row, reference), _columns(row))

    return ask


def ask_task(render: Render) -> Ask:
    """Rows of a built-in task: its own prompt; right are its answers, or the right candidates."""

    def ask(row: Row) -> Asked:
        found = render(row)
        right = found.answers or tuple(found.candidates[index].strip() for index in found.right)
        return Asked(found.prompt, found.prompt, right, _columns(row))

    return ask


def _columns(row: Row) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in _RESERVED}


def _references(row: Row, column: str | None) -> tuple[str, ...]:
    """The text, or the list of texts, of the column with what is right."""
    if column is None:
        return ()
    if column not in row:
        raise DataError(
            f"no column {column!r} with what is right; columns found: {', '.join(map(str, row)) or 'none'}. "
            "Remedy: name it with --completion-column."
        )
    value = row[column]
    if isinstance(value, str) and value.lstrip().startswith("[") and value.rstrip().endswith("]"):
        value = _listed(value, column)
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, Sequence) or not value or not all(isinstance(item, str) for item in value):
        raise DataError(f"column {column!r} holds {value!r}, not a text or a list of texts. Remedy: correct the row.")
    return tuple(value)


def _listed(value: str, column: str) -> Any:
    """A list of texts in a csv cell is JSON; a text that only looks like one stays a text."""
    try:
        found = from_json(value, column)
    except DataError:
        return value
    return found if isinstance(found, list) and all(isinstance(item, str) for item in found) else value
