"""What a run would read from a file or a task: shape, rows as tokens, what is scored, and what does not fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import Any

from zotune.config import TrainConfig
from zotune.data.source import Part, load_source
from zotune.errors import DataError
from zotune.objective.base import Example, Objective
from zotune.objective.tokens import TextCoder

SHOWN = 3


def look(config: TrainConfig) -> dict[str, Any]:
    """A summary as plain values. Without a model (`config.model` empty) nothing is tokenised.

    `examples` are the first rows: pieces of text with their token id and whether the loss scores them.
    Raises DataError and ConfigError as a run would.
    """
    source = load_source(config)
    part = source.first
    found: dict[str, Any] = {
        "data": part.name,
        "shape": source.says() or f"task {config.task}",
        "rows": len(part.rows),
        "columns": list(part.rows[0]),
    }
    if not config.model:
        return found | {"examples": [_untokenised(config, row) for row in part.rows[:SHOWN]]}
    from zotune.load import load_tokenizer, meta_model
    from zotune.objective.make import fitted, make_objective

    tokenizer, model = load_tokenizer(config), meta_model(config)
    config = fitted(config, model)
    objective = make_objective(config, tokenizer, model, source)
    examples = _encode(objective, part)
    lengths = objective.lengths(examples)
    found |= {
        "lengths": {"shortest": min(lengths), "median": median(lengths), "longest": max(lengths), "all": sum(lengths)},
        "max_length": config.max_length,
        "cut": sum(example.cut for example in examples),
        **({"objective": objective.says} if config.generates else {"scored": sum(map(_scored, examples))}),
    }
    coder = TextCoder(tokenizer)
    if len({example.options for example in examples}) == 1 and len(examples[0].options) > 1:
        found["label_tokens"] = [_option(coder, option) for option in examples[0].options]
        counts = Counter(example.label for example in examples)
        found["labels"] = [counts[index] for index in range(len(examples[0].options))]
    return found | {"examples": [_shown(coder, example) for example in examples[:SHOWN]]}


def _encode(objective: Objective, part: Part) -> list[Example]:
    try:
        return objective.encode(part.rows)
    except DataError as error:
        raise DataError(f"{part.name}: {error}") from None


def _untokenised(config: TrainConfig, row: dict[str, Any]) -> dict[str, Any]:
    """A row as a task renders it, or as it is."""
    if config.task is None:
        return {"row": row}
    from zotune.tasks import find

    task = find(config.task, config.allow_task_code)
    render = task.causal or task.masked
    assert render is not None
    shown = render(row)
    return {"prompt": shown.prompt, "candidates": list(shown.candidates), "right": list(shown.right)}


def _scored(example: Example) -> int:
    return sum(example.scored) if example.scored else len(example.options[example.label])


def _option(coder: TextCoder, ids: Sequence[int]) -> dict[str, Any]:
    return {"text": coder.tokenizer.decode(list(ids)), "ids": list(ids), "tokens": coder.names(ids)}


def _shown(coder: TextCoder, example: Example) -> dict[str, Any]:
    """The prompt and each option as pieces [text, id, scored]."""
    everything = [_pieces(coder, (*example.prompt, *option))[len(example.prompt) :] for option in example.options]
    if example.mask >= 0:  # the options fill the mask, they do not follow the prompt
        everything = [[(coder.tokenizer.decode(list(option)), option[0])] for option in example.options]
    flags = example.scored or tuple(True for _ in example.options[example.label])
    options = []
    for pieces in everything:
        marks = flags if len(everything) == 1 else [True] * len(pieces)
        options.append([[text, token, mark] for (text, token), mark in zip(pieces, marks, strict=True)])
    prompt = [
        [text, token, place == example.mask] for place, (text, token) in enumerate(_pieces(coder, example.prompt))
    ]
    right = list(example.right) or [example.label]
    return {"prompt": prompt, "options": options, "right": right, "cut": example.cut}


def _pieces(coder: TextCoder, ids: Sequence[int]) -> list[tuple[str, int]]:
    """The text that each token adds. Decoded from the start, because a token alone may lose its space or its letter."""
    texts = [str(coder.tokenizer.decode(list(ids[:end]))) for end in range(len(ids) + 1)]
    whole = texts[-1]
    pieces, at = [], 0
    for end, token in enumerate(ids, start=1):
        # A letter of several tokens appears with its last one.
        said = texts[end] if whole.startswith(texts[end]) else texts[end].rstrip("\ufffd")
        length = len(said) if whole.startswith(said) else at
        pieces.append((whole[at : max(at, length)], token))
        at = max(at, length)
    return pieces
