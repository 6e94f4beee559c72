"""From the shape of a user's rows to the objective that trains on them: one short function per shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from zotune.config import TrainConfig
from zotune.data import chat, preference
from zotune.data.rendered import Rendered, Row, field, from_json, texts
from zotune.data.template import Template
from zotune.errors import ConfigError, DataError
from zotune.objective.base import Objective
from zotune.objective.choice import Choice
from zotune.objective.label_words import LabelWords
from zotune.objective.language_model import LanguageModel
from zotune.objective.model_kind import Kind
from zotune.objective.options import OptionLikelihood
from zotune.objective.scoring import IGNORE
from zotune.objective.token_loss import Marked, TokenLoss
from zotune.objective.tokens import TextCoder

Rows = Sequence[Row]
Build = Callable[[TrainConfig, Any, Kind, Rows], Objective]
Chat = Callable[[Row], tuple[list[chat.Message], int]]

# Instruction and output as plain text, for tokenizers without a chat template.
_ALPACA = "{{ instruction }}{% if input is defined and input %}\n\n{{ input }}{% endif %}\n\n"
_QUESTION = "Question: {{ question }}\nAnswer:"


def _text(config: TrainConfig, tokenizer: Any, kind: Kind, rows: Rows) -> Objective:
    return LanguageModel(tokenizer, config.text_column, config.max_length, kind)


def _label(config: TrainConfig, tokenizer: Any, kind: Kind, rows: Rows) -> Objective:
    if not config.label_words:
        raise ConfigError("shape label needs label words. Remedy: --label-words, one word per label value.")
    template = _template(config)
    return LabelWords(
        tokenizer, template, config.label_column, config.label_words, config.labels, kind, config.max_length
    )


def _completion(config: TrainConfig, tokenizer: Any, kind: Kind, rows: Rows) -> Objective:
    if config.completion_column is not None:
        return LanguageModel(tokenizer, (_template(config), config.completion_column), config.max_length, kind)
    if rows and chat.is_chat(rows[0].get("prompt")) and chat.is_chat(rows[0].get("completion")):
        return _chat(chat.completion)(config, tokenizer, kind, rows)
    template = Template(config.template or "{{ prompt }}")
    return LanguageModel(tokenizer, (template, "completion"), config.max_length, kind)


def _alpaca(config: TrainConfig, tokenizer: Any, kind: Kind, rows: Rows) -> Objective:
    if config.template is None and kind == "causal" and getattr(tokenizer, "chat_template", None):
        return _chat(chat.alpaca)(config, tokenizer, kind, rows)
    template = Template(config.template or _ALPACA)
    end = getattr(tokenizer, "eos_token_id", None) is not None
    return LanguageModel(tokenizer, (template, "output"), config.max_length, kind, end)


def _chat(read: Chat) -> Build:
    def build(config: TrainConfig, tokenizer: Any, kind: Kind, rows: Rows) -> Objective:
        def mark(row: Row, coder: TextCoder) -> Marked:
            return _marked(coder, *chat.render_chat(tokenizer, *read(row)))

        return TokenLoss(tokenizer, mark, kind, config.max_length)

    return build


def _choices(config: TrainConfig, tokenizer: Any, kind: Kind, rows: Rows) -> Objective:
    template = Template(config.template or _QUESTION)

    def render(row: Row) -> Rendered:
        choices, names = _read_choices(row)
        prompt = template.render(row)
        space = "" if prompt[-1:].isspace() else " "
        right = _answer(field(row, "answer", "answerKey"), choices, names)
        return Rendered(prompt, tuple(space + choice.strip() for choice in choices), (right,), "Answer:")

    return OptionLikelihood(tokenizer, render, kind, config.max_length)


def _preference(config: TrainConfig, tokenizer: Any, kind: Kind, rows: Rows) -> Objective:
    if kind == "masked":
        raise ConfigError("A masked model cannot score answers. Remedy: use a causal or encoder-decoder model.")
    template = None if config.template is None else Template(config.template)

    def render(row: Row) -> Rendered:
        if template is None and chats:
            return preference.messages(tokenizer, row)
        return preference.texts(row, template)

    chats = bool(rows) and preference.are_chats(rows[0])
    return OptionLikelihood(tokenizer, render, kind, config.max_length, Choice(cuts=True))


def _tokens(config: TrainConfig, tokenizer: Any, kind: Kind, rows: Rows) -> Objective:
    size = len(tokenizer)

    def mark(row: Row, coder: TextCoder) -> Marked:
        ids = _integers(row, "input_ids")
        labels = _integers(row, "labels") if row.get("labels") is not None else ids
        read = _integers(row, "attention_mask") if row.get("attention_mask") is not None else [1] * len(ids)
        if not len(ids) == len(labels) == len(read):
            raise DataError("input_ids, labels and attention_mask differ in length. Remedy: correct the row.")
        kept = [(token, label) for token, label, seen in zip(ids, labels, read, strict=True) if seen]
        for token, label in kept:
            if not 0 <= token < size:
                raise DataError(
                    f"token {token} is outside the vocabulary of {size}. Remedy: use this model's tokenizer."
                )
            if label not in (IGNORE, token):
                raise DataError(
                    f"label {label} is neither {IGNORE} nor its token {token}. Remedy: do not shift labels."
                )
        return tuple(token for token, _ in kept), tuple(label != IGNORE for _, label in kept)

    return TokenLoss(tokenizer, mark, kind, config.max_length)


BUILD: Mapping[str, Build] = {
    "text": _text,
    "label": _label,
    "completion": _completion,
    "messages": _chat(chat.messages),
    "sharegpt": _chat(chat.sharegpt),
    "alpaca": _alpaca,
    "choices": _choices,
    "preference": _preference,
    "tokens": _tokens,
}


def _template(config: TrainConfig) -> Template:
    if config.template is None and not config.text_column.isidentifier():
        raise ConfigError(
            f"column {config.text_column!r} cannot be named in a template. Remedy: rename it to letters, digits and _."
        )
    return Template(config.template or f"{{{{ {config.text_column} }}}}")


def _marked(coder: TextCoder, text: str, spans: Sequence[chat.Span]) -> Marked:
    """Token ids of a text, and which lie in the spans. Where a token crosses a border, the parts are encoded alone."""
    borders = [place for span in spans for place in span]
    *parts, whole = coder.encode([*(text[:place] for place in borders), text])
    if all(whole[: len(part)] == part for part in parts):
        ends = [*map(len, parts), len(whole)]
        pieces = [whole[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    else:
        pieces = coder.encode([text[a:b] for a, b in zip([0, *borders], [*borders, len(text)], strict=True)])
    ids = tuple(token for piece in pieces for token in piece)
    return ids, tuple(number % 2 == 1 for number, piece in enumerate(pieces) for _ in piece)


def _read_choices(row: Row) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The choices and what they may be called: A, B, ... and 0, 1, ..., unless the row names them itself (ARC)."""
    value = from_json(field(row, "choices"), "choices")
    if isinstance(value, Mapping):
        choices, named = texts(value, "text"), texts(value, "label")
        if len(choices) != len(named):
            raise DataError("column 'choices' has other numbers of texts and labels. Remedy: correct the row.")
        names = [named]
    else:
        choices = texts({"choices": value}, "choices")
        names = [tuple(chr(ord("A") + index) for index in range(len(choices))), _indices(choices)]
    if len(choices) < 2:
        raise DataError("column 'choices' has only one choice. Remedy: give at least two.")
    return choices, names


def _indices(choices: Sequence[str]) -> tuple[str, ...]:
    return tuple(map(str, range(len(choices))))


def _answer(value: Any, choices: Sequence[str], names: Sequence[Sequence[str]]) -> int:
    """The right choice: an integer is its index (0 is the first), a text its text or one of its names.

    Where a row names its choices itself, a name goes before a text that is the same.
    """
    said = str(value).strip()
    own = len(names) == 1 and said in names[0]
    among = [_indices(choices)] if isinstance(value, int) else names if own else [choices, *names]
    found = {each.index(said) for each in among if said in each}
    if len(found) == 1:
        return found.pop()
    if found:
        raise DataError(
            f"answer {value!r} could be several of the choices {list(choices)}. Remedy: give its letter (A is the "
            "first choice); or, in jsonl, its index (from 0) as a number."
        )
    raise DataError(
        f"answer {value!r} is none of the choices {list(choices)}. "
        "Remedy: give its text, or its index (from 0) as a number."
    )


def _integers(row: Row, column: str) -> list[int]:
    value = from_json(field(row, column), column)
    if not isinstance(value, list | tuple) or not all(isinstance(item, int) for item in value):
        raise DataError(f"column {column!r} is no list of integers. Remedy: correct the row.")
    return list(value)
