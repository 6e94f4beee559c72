"""What `zotune data` finds: shape, pieces that join to the text, scored ones, label tokens and counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from zotune.config import TrainConfig
from zotune.data.look import _pieces, look
from zotune.errors import DataError
from zotune.objective.tokens import TextCoder


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Four rows with labels, the third of 16 words."""
    texts = ["good film", "dull plot", "very " * 16 + "good", "a mess"]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": text, "label": n % 2}) + "\n" for n, text in enumerate(texts)))
    return path


def config(path: Path, **options: Any) -> TrainConfig:
    """A config to look at a file."""
    return TrainConfig(**{"model": "", "train": path, "output_dir": Path("."), "steps": 0, **options})


def test_label_words(rows: Path, tiny: Any) -> None:
    """Label tokens and counts per label, what does not fit, and the pieces of the first three rows."""
    found = look(
        config(
            rows,
            model=str(tiny("llama")),
            label_words=["terrible", "great"],
            template="{{ text }} it was",
            max_length=12,
        )
    )
    assert (found["rows"], found["cut"], found["max_length"], found["scored"]) == (4, 1, 12, 4)
    assert found["labels"] == [2, 2] and [option["text"] for option in found["label_tokens"]] == ["terrible", "great"]
    assert all(len(option["ids"]) == 1 for option in found["label_tokens"])
    assert found["lengths"] == {"shortest": 5, "median": 5, "longest": 12, "all": 27}
    assert len(found["examples"]) == 3 and [example["cut"] for example in found["examples"]] == [False, False, True]
    first = found["examples"][0]
    assert "".join(text for text, _, _ in first["prompt"]).endswith("good film it was")
    assert not any(scored for _, _, scored in first["prompt"])
    assert [[scored for _, _, scored in option] for option in first["options"]] == [[True], [True]]
    assert first["right"] == [0] and json.loads(json.dumps(found)) == found


def test_positions(rows: Path, tiny: Any) -> None:
    """What a model has no positions for does not fit, whatever the longest length."""
    long = rows.with_name("long.jsonl")
    long.write_text(json.dumps({"text": "good film " * 50}) + "\n")
    for family, most, cut in (("gpt2", 64, 1), ("llama", 512, 0)):
        found = look(config(long, model=str(tiny(family))))
        assert (found["max_length"], found["cut"]) == (most, cut)


def test_mask(rows: Path, tiny: Any) -> None:
    """For a masked model the gap in the prompt is marked, and the words that may fill it."""
    options = {"label_words": ["terrible", "great"], "template": "{{ text }} it was {{ mask }}"}
    first = look(config(rows, model=str(tiny("bert")), **options))["examples"][0]
    assert [text for text, _, scored in first["prompt"] if scored] == [" [MASK]"]
    assert [[text for text, _, _ in option] for option in first["options"]] == [["terrible"], ["great"]]


def test_text(rows: Path, tiny: Any) -> None:
    """All tokens but the first are scored; there are no label tokens."""
    found = look(config(rows, model=str(tiny("llama"))))
    assert found["shape"].startswith("text: ") and "label_tokens" not in found
    assert found["scored"] == 2 + 2 + 17 + 2


def test_without_a_model(rows: Path, tmp_path: Path) -> None:
    """The shape and the rows as they are; a task's rows are rendered."""
    found = look(config(rows))
    assert "lengths" not in found and found["examples"][0] == {"row": {"text": "good film", "label": 0}}
    for name in ("train", "dev"):
        row = {"premise": "P.", "hypothesis": "h", "label": 2}
        (tmp_path / f"{name}.jsonl").write_text((json.dumps(row) + "\n") * 4)
    shown = look(config(tmp_path, train=None, task="cb", data_dir=tmp_path))["examples"][0]
    assert shown["prompt"].startswith('Suppose P. Can we infer that "h"?') and shown["right"] == [2]


def test_errors_name_the_file(rows: Path, tiny: Any) -> None:
    """As a run would say it."""
    with pytest.raises(DataError, match=r"rows.jsonl: Row 1: Template .*: column review is missing"):
        look(config(rows, model=str(tiny("llama")), label_words=["terrible", "great"], template="{{ review }}"))


def test_pieces_of_letters(stories_tokenizer_or_skip: Any) -> None:
    """Letters of several tokens appear with their last token, and all pieces join to the text."""
    coder = TextCoder(stories_tokenizer_or_skip)
    ids = coder.encode(["Lily saw 日本 and ünïcode"])[0]
    pieces = _pieces(coder, ids)
    assert len(pieces) == len(ids) and "".join(text for text, _ in pieces) == coder.tokenizer.decode(list(ids))
    assert any(text == "" for text, _ in pieces)


@pytest.fixture
def stories_tokenizer_or_skip(shared_data: Path) -> Any:
    """A trained tokenizer that falls back to bytes."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(shared_data / "stories260K")
