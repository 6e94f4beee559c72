"""Preference pairs: an answer that was chosen and one that was rejected, as texts or as chats (TRL's columns)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from zotune.data import chat
from zotune.data.rendered import Rendered, Row, text
from zotune.data.template import Template
from zotune.errors import DataError

CHOSEN, REJECTED = "chosen", "rejected"
# The rejected answer stands first: of equal scores the first counts as chosen, and a tie is no win.
_RIGHT = (1,)


def texts(row: Row, template: Template | None) -> Rendered:
    """Prompt and answers joined as they are. Without a template the prompt is the column `prompt`, or what both answers
    begin with, in whole words.
    """
    chosen, rejected = text(row, CHOSEN), text(row, REJECTED)
    if template is not None:
        return Rendered(template.render(row), (rejected, chosen), _RIGHT)
    if row.get("prompt") is not None:
        return Rendered(text(row, "prompt"), (rejected, chosen), _RIGHT)
    begin = chosen[: _shared(chosen, rejected)]
    end = max((place + 1 for place, letter in enumerate(begin) if letter.isspace()), default=0)
    # A space before the first word that differs belongs to the answers, a line end to the prompt.
    end -= begin[end - 1 : end] == " "
    if not end:
        raise DataError(
            "there is no column 'prompt', and the two answers begin with no word in common. Remedy: give the prompt in "
            "a column of that name."
        )
    return Rendered(chosen[:end], (rejected[end:], chosen[end:]), _RIGHT)


def messages(tokenizer: Any, row: Row) -> Rendered:
    """Chats in the tokenizer's chat template: answers are what it writes after the prompt's messages.

    The prompt is `prompt`, a list of messages or a text that the user says; or the messages that both chats begin with.
    Raises DataError where the two have no prompt in common, ConfigError for a tokenizer without a template.
    """
    chosen, rejected = (chat.listed(row, name) for name in (CHOSEN, REJECTED))
    same = _shared(chosen, rejected)
    if same:
        before, chosen, rejected = chosen[:same], chosen[same:], rejected[same:]
    elif isinstance(row.get("prompt"), str) and not row["prompt"].lstrip().startswith("[{"):
        before = [{"role": "user", "content": row["prompt"]}]
    else:
        before = chat.listed(row, "prompt")
    if not chosen or not rejected:
        raise DataError("one of the chats is the beginning of the other. Remedy: correct or drop the row.")
    prompt, answers = chat.answers(tokenizer, before, (rejected, chosen))
    return Rendered(prompt, answers, _RIGHT)


def _shared(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many items (letters, messages) both begin with."""
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def are_chats(row: Mapping[str, Any]) -> bool:
    """Whether the answers of a row are lists of messages."""
    return all(chat.is_chat(row.get(name)) for name in (CHOSEN, REJECTED))
