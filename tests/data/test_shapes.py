"""Which shape rows have: told from their columns, decided by options, refused where it is not clear."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from zotune.config import TrainConfig
from zotune.data.shapes import SHAPES, shape_of
from zotune.errors import DataError


def config(**options: Any) -> TrainConfig:
    """A config with these options."""
    return TrainConfig(model="m", train=Path("t"), output_dir=Path("o"), **options)


@pytest.mark.parametrize(
    ("row", "options", "shape"),
    [
        ({"text": "x"}, {}, "text"),
        ({"text": "x", "label": 0}, {}, "text"),
        ({"review": "x"}, {"text_column": "review"}, "text"),
        ({"text": "x", "label": 0}, {"label_words": ["a", "b"]}, "label"),
        ({"prompt": "x", "completion": "y"}, {}, "completion"),
        ({"text": "x", "answer": "y"}, {"completion_column": "answer"}, "completion"),
        ({"messages": []}, {}, "messages"),
        ({"conversations": [], "id": 3}, {}, "sharegpt"),
        ({"instruction": "x", "input": "", "output": "y"}, {}, "alpaca"),
        ({"instruction": "x", "output": "y"}, {}, "alpaca"),
        ({"question": "x", "choices": [], "answer": 1}, {}, "choices"),
        ({"question": "x", "choices": {}, "answerKey": "A", "id": "q"}, {}, "choices"),
        ({"prompt": "x", "chosen": "y", "rejected": "z"}, {}, "preference"),
        ({"chosen": [], "rejected": []}, {}, "preference"),
        ({"input_ids": [1], "labels": [1]}, {}, "tokens"),
        ({"input_ids": [1]}, {}, "tokens"),
        ({"prompt": "x"}, {"objective": "f1"}, "prompt"),
        ({"prompt": "x", "completion": "y", "text": "z"}, {"reward": ["a:b"]}, "prompt"),
        ({"text": "x"}, {"metric": "a:b"}, "prompt"),
        ({"review": "x"}, {"template": "{{ review }}", "reward": ["a:b"]}, "prompt"),
        # What is asked for wins.
        ({"text": "x", "messages": []}, {"data_format": "messages"}, "messages"),
        ({"text": "x", "messages": []}, {"data_format": "text"}, "text"),
        (
            {"review": "x", "stars": 1},
            {"data_format": "label", "template": "{{ review }}", "label_words": ["a", "b"]},
            "label",
        ),
    ],
)
def test_shape(row: dict[str, Any], options: dict[str, Any], shape: str) -> None:
    """One row of columns, one shape."""
    assert shape_of(config(**options), [row]) == shape


@pytest.mark.parametrize(
    ("row", "options", "says"),
    [
        (
            {"text": "x", "messages": []},
            {},
            "fit more than one shape: text .* and messages .*--data-format text or messages",
        ),
        (
            {"prompt": "x", "completion": "y", "instruction": "i", "output": "o"},
            {},
            "--data-format completion or alpaca",
        ),
        (
            {"prompt": "x", "chosen": "y", "rejected": "z", "messages": []},
            {},
            "fit more than one shape: messages .* and preference .*--data-format messages or preference",
        ),
        ({"prompt": "x", "chosen": "y"}, {"data_format": "preference"}, "preference needs the column 'rejected'"),
        ({"review": "x"}, {}, "Row 1 has no column 'text'; columns found: review. They fit no shape .*--text-column"),
        (
            {"prompt": "x", "answer": "y"},
            {},
            "a prompt and nothing to follow it. Remedy: .*--reward",
        ),
        ({"question": "x"}, {"objective": "f1"}, "no column 'prompt' to complete; columns found: question. Remedy"),
        ({}, {}, "columns found: none"),
        ({"question": "x", "answer": "y"}, {}, "fit no shape .*choices: question, choices, answer"),
        ({"text": "x"}, {"data_format": "messages"}, "shape messages needs the column 'messages'; columns found: text"),
        ({"text": "x"}, {"data_format": "choices"}, "needs the column 'question'"),
        ({"text": "x"}, {"data_format": "label"}, "needs the column 'label'"),
    ],
)
def test_unclear(row: dict[str, Any], options: dict[str, Any], says: str) -> None:
    """No shape, several shapes, missing columns: one sentence that names them and what to do."""
    with pytest.raises(DataError, match=says) as caught:
        shape_of(config(**options), [row])
    assert "Remedy: " in str(caught.value)


def test_every_shape_can_be_asked_for() -> None:
    """The option takes the names of the table, and the table has an objective for each."""
    from zotune.objective.from_shape import BUILD

    assert all(config(data_format=name).data_format == name for name in SHAPES)
    assert set(BUILD) == set(SHAPES)
