"""Chats as text: the tokenizer's chat template, and which parts of it the assistant said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from zotune.data.rendered import Row, field, from_json, text
from zotune.errors import ConfigError, DataError

Message = dict[str, str]
Span = tuple[int, int]

_SHAREGPT = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def messages(row: Row) -> tuple[list[Message], int]:
    """`messages`: a list of {role, content}. With it, the first message that may be scored."""
    return listed(row, "messages"), 0


def sharegpt(row: Row) -> tuple[list[Message], int]:
    """`conversations`: a list of {from, value}."""
    found = _listed(field(row, "conversations"), "conversations", "from", "value")
    for message in found:
        if message["role"] not in _SHAREGPT:
            raise DataError(
                f"column 'conversations' has a turn from {message['role']!r}. "
                f"Remedy: use one of {', '.join(_SHAREGPT)}."
            )
    return [{**message, "role": _SHAREGPT[message["role"]]} for message in found], 0


def alpaca(row: Row) -> tuple[list[Message], int]:
    """`instruction`, `input` (may be missing or empty) and `output`."""
    asked, given = text(row, "instruction"), row.get("input") or ""
    if not isinstance(given, str):
        raise DataError(f"column 'input' holds {given!r}, not text. Remedy: correct the row.")
    question = {"role": "user", "content": f"{asked}\n\n{given}" if given else asked}
    return [question, {"role": "assistant", "content": text(row, "output")}], 1


def completion(row: Row) -> tuple[list[Message], int]:
    """`prompt` and `completion` as lists of messages: those of the prompt are not scored."""
    before, after = listed(row, "prompt"), listed(row, "completion")
    return before + after, len(before)


def question(tokenizer: Any, row: Row, column: str) -> tuple[list[Message], str]:
    """The messages of a column, and their text up to where the assistant answers. Raises as `render_chat`."""
    found = listed(row, column)
    _need_template(tokenizer)
    return found, _written(tokenizer, found, True)


def listed(row: Row, column: str) -> list[Message]:
    """The messages of a column. Raises DataError for anything else."""
    return _listed(field(row, column), column, "role", "content")


def is_chat(value: Any) -> bool:
    """Whether a value looks like a list of messages, or like one in a csv cell."""
    return isinstance(value, list) or (isinstance(value, str) and value.lstrip().startswith("[{"))


def answers(
    tokenizer: Any, before: Sequence[Message], after: Sequence[Sequence[Message]]
) -> tuple[str, tuple[str, ...]]:
    """The messages `before` as text, up to where the assistant answers, and what follows with each of `after`.

    Raises DataError for a template that writes the messages before otherwise once an answer stands behind them,
    ConfigError for a tokenizer without a template.
    """
    _need_template(tokenizer)
    wholes = [_written(tokenizer, [*before, *each], False) for each in after]
    for ask in (True, False):
        prompt = _written(tokenizer, before, ask)
        if all(whole.startswith(prompt) for whole in wholes):
            return prompt, tuple(whole[len(prompt) :].rstrip() for whole in wholes)
    raise DataError(
        "the chat template writes the prompt anew once an answer follows it. Remedy: give prompt and answers as texts."
    )


def _listed(value: Any, column: str, role: str, content: str) -> list[Message]:
    value = from_json(value, column)
    if not isinstance(value, Sequence) or not value or not all(isinstance(item, Mapping) for item in value):
        raise DataError(
            f"column {column!r} is no list of messages. Remedy: write [{{{role!r}: ..., {content!r}: ...}}]."
        )
    found = []
    for number, item in enumerate(value, start=1):
        if not isinstance(item.get(role), str) or not isinstance(item.get(content), str):
            raise DataError(
                f"column {column!r}, message {number}: {role} and {content} must be texts. Remedy: correct the row."
            )
        found.append({"role": item[role], "content": item[content]})
    return found


def render_chat(tokenizer: Any, chat: Sequence[Message], first: int) -> tuple[str, list[Span]]:
    """The chat as the tokenizer's template writes it, and the parts (begin, end) that the assistant said.

    A turn of the assistant counts from message `first` on, with the token that ends it. A template that writes earlier
    turns anew (without their reasoning, say) leaves only those that stand as they were said.
    Raises DataError when no turn of the assistant is left, ConfigError for a tokenizer without a template.
    """
    _need_template(tokenizer)
    whole = _written(tokenizer, chat, False)
    spans = []
    for number, message in enumerate(chat):
        if message["role"] != "assistant" or number < max(first, 1):
            continue
        before, after = _written(tokenizer, chat[:number], True), _written(tokenizer, chat[: number + 1], False)
        if not after.startswith(before):
            before = _written(tokenizer, chat[:number], False)
        if after.startswith(before) and whole.startswith(after):
            spans.append((len(before), len(after.rstrip())))
    if not spans:
        raise DataError(
            "no turn of the assistant can be scored. Remedy: let a turn of the assistant follow one of the user."
        )
    return whole, spans


def _need_template(tokenizer: Any) -> None:
    if not getattr(tokenizer, "chat_template", None):
        raise ConfigError(
            f"{type(tokenizer).__name__} has no chat template. Remedy: take the chat version of the model, or give "
            "prompt and completion as texts."
        )


def _written(tokenizer: Any, chat: Sequence[Message], ask: bool) -> str:
    from zotune.data.chat_template import FAILURES, renderer

    try:
        return renderer(tokenizer)(chat, ask)
    except FAILURES as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise DataError(
            f"the chat template refuses the row: {reason}. Remedy: correct the roles or their order."
        ) from error
