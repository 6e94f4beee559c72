"""`zotune data`: what it prints, in words and as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

CHOICES = ["--label-words", "terrible,great", "--template", "{{ text }} it was"]


def test_words(cli: Any, tiny: Any, movies: Path) -> None:
    """Shape, counts and three rows; without a terminal scored tokens are in brackets and nothing is coloured."""
    outcome = cli("data", movies / "train.jsonl", "--model", tiny("llama"), *CHOICES)
    assert outcome.code == 0 and outcome.stderr == ""
    assert "shape       label: label words are scored after the prompt" in outcome.stdout
    assert "cut         0 of 22 rows do not fit max_length 512" in outcome.stdout
    assert "'terrible'  terrible [" in outcome.stdout and ", 11 rows" in outcome.stdout
    assert outcome.stdout.count("--- row") == 3 and "\n  > [ terrible]\n    [ great]\n" in outcome.stdout
    assert "\x1b[" not in outcome.stdout


@pytest.mark.parametrize("plain", [False, True])
def test_colour(cli: Any, tiny: Any, movies: Path, monkeypatch: pytest.MonkeyPatch, plain: bool) -> None:
    """On a terminal scored tokens are coloured; with NO_COLOR they are in brackets again."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1" if plain else "")
    text = cli("data", movies / "train.jsonl", "--model", tiny("llama"), *CHOICES).stdout
    assert ("\x1b[" in text) == (not plain) and ("[ great]" in text) == plain


def test_json(cli: Any, tiny: Any, movies: Path) -> None:
    """One object on stdout."""
    outcome = cli("data", movies / "train.jsonl", "--model", tiny("llama"), "--json")
    found = json.loads(outcome.stdout)
    assert outcome.stdout.count("\n") == 1 and found["rows"] == 22 and len(found["examples"]) == 3
    assert set(found) == {
        "data", "shape", "rows", "columns", "lengths", "max_length", "cut", "scored", "examples",
    }  # fmt: skip


def test_preference_pairs(cli: Any, tiny: Any, tmp_path: Path) -> None:
    """The shape in words; the answer that was chosen is marked."""
    rows = tmp_path / "pairs.jsonl"
    rows.write_text(json.dumps({"prompt": "it was", "chosen": " great", "rejected": " terrible mess"}) + "\n")
    outcome = cli("data", rows, "--model", tiny("llama"))
    assert "preference: the chosen answer is compared with the rejected one after the prompt" in outcome.stdout
    assert "\n    [ terrible][ mess]\n  > [ great]\n" in outcome.stdout


def test_what_is_generated(cli: Any, tiny: Any, tmp_path: Path) -> None:
    """Prompts, what is right where rows have it, and by what completions are scored."""
    rows, model = tmp_path / "rows.jsonl", tiny("llama")
    rows.write_text(json.dumps({"prompt": "was it good ? it was"}) + "\n")
    outcome = cli("data", rows, "--model", model, "--reward", "json_valid,length:3", "--reward-weights", "1,0.5")
    assert outcome.code == 0 and "shape      prompt: its completion is generated and scored" in outcome.stdout
    assert "objective  1 json_valid + 0.5 length:3, greedy, up to 50 tokens" in outcome.stdout
    assert "it was\n" in outcome.stdout and "scored" not in outcome.stdout.replace("generated and scored", "")
    (tmp_path / "own.py").write_text("def spread(predictions, references):\n    return 1.0\n")
    rows.write_text(json.dumps({"prompt": "it was", "completion": "great"}) + "\n")
    outcome = cli("data", rows, "--model", model, "--metric", f"{tmp_path / 'own.py'}:spread", "--json")
    assert json.loads(outcome.stdout)["objective"].startswith("own.py:spread, greedy")


def test_rows_of_the_hub(cli: Any, hub: Any) -> None:
    """A data set in place of a file, with the split that was asked for; offline it is one sentence."""
    calls = hub([{"text": "good film", "label": 0}])
    outcome = cli("data", "org/movies/plain:test")
    assert outcome.code == 0 and "data     org/movies/plain:test, 1 rows" in outcome.stdout
    assert calls == [("org/movies", "plain", "test", None)]
    hub(ConnectionError("offline"))
    outcome = cli("data", "org/movies")
    assert outcome.code == 2 and "org/movies:train is no file here" in outcome.stderr
    assert outcome.stderr.count("\n") == 1


def test_without_a_model(cli: Any, movies: Path) -> None:
    """A look at the rows needs no tokenizer."""
    outcome = cli("data", movies / "train.jsonl")
    assert outcome.code == 0 and "not known without --model" in outcome.stdout and "label: 0" in outcome.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 2, "give either FILE or --task"),
        (["rows.jsonl", "--task", "cb"], 2, "give either FILE or --task"),
        (["rows.jsonl", "--data-format", "parquet"], 2, "data_format is 'parquet'"),
        (["none.jsonl"], 3, "none.jsonl does not exist"),
        (["--task", "bolq"], 2, "unknown task 'bolq'. The nearest is 'boolq'"),
        (["--task", "cb", "--data-dir", "nowhere"], 3, "nowhere is not a folder"),
        (["rows.jsonl", "--data-dir", "x"], 2, "data_dir needs a task"),
    ],
)
def test_errors(cli: Any, arguments: list[str], code: int, says: str) -> None:
    """One line and the right code."""
    outcome = cli("data", *arguments)
    assert outcome.code == code and says in outcome.stderr and outcome.stderr.count("\n") == 1
