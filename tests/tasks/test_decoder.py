"""The prompts of the classification tasks for decoders, letter by letter, and which letters are scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from zotune.data.rendered import Rendered
from zotune.errors import DataError
from zotune.objective.choice import Choice
from zotune.objective.options import OptionLikelihood
from zotune.tasks import find

YES_NO, NO_YES = ("Yes", "No"), ("No", "Yes")
# Rows in the fields of the hub's data sets, and what MeZO's templates make of them.
GOLDEN: list[tuple[str, dict[str, Any], str, tuple[str, ...], int, str]] = [
    ("sst2", {"sentence": "a dull film ", "label": 0}, "a dull film It was", (" terrible", " great"), 0, "It was"),
    ("sst2", {"sentence": "Fine!", "label": "1"}, "Fine! It was", (" terrible", " great"), 1, "It was"),
    (
        "rte",
        {"premise": "No cat sat.", "hypothesis": "A cat sat.", "label": 1},
        'No cat sat.\nDoes this mean that "A cat sat." is true? Yes or No?\n',
        YES_NO,
        1,
        "",
    ),
    (
        "rte",
        {"premise": 'He said "go".', "hypothesis": "He spoke", "label": "entailment"},
        'He said "go".\nDoes this mean that "He spoke" is true? Yes or No?\n',
        YES_NO,
        0,
        "",
    ),
    (
        "cb",
        {"premise": "It was not peeled.", "hypothesis": "it was peeled", "label": 1},
        'Suppose It was not peeled. Can we infer that "it was peeled"? Yes, No, or Maybe?\n',
        ("Yes", "No", "Maybe"),
        1,
        "",
    ),
    (
        "cb",
        {"premise": "Who knows?", "hypothesis": "she knows", "label": "neutral"},
        'Suppose Who knows? Can we infer that "she knows"? Yes, No, or Maybe?\n',
        ("Yes", "No", "Maybe"),
        2,
        "",
    ),
    # A question without a mark and with a small letter gets both; one that has them keeps them.
    (
        "boolq",
        {"passage": "Cats sleep.", "question": "do cats sleep", "answer": True},
        "Cats sleep. Do cats sleep?\n",
        YES_NO,
        0,
        "",
    ),
    (
        "boolq",
        {"passage": "Cats sleep.", "question": "Are cats dogs?", "answer": "false"},
        "Cats sleep. Are cats dogs?\n",
        YES_NO,
        1,
        "",
    ),
    # The pronoun loses its capital letter, the noun does not.
    (
        "wsc",
        {"text": "Mark told Pete lies. He was sad.", "span1_text": "Mark", "span2_text": "He", "label": 0},
        'Mark told Pete lies. He was sad.\nIn the previous sentence, does the pronoun "he" refer to Mark? Yes or No?\n',
        NO_YES,
        0,
        "",
    ),
    (
        "wsc",
        {"text": "The Bank shut its door.", "span1_text": "The Bank", "span2_text": "its", "label": 1},
        'The Bank shut its door.\nIn the previous sentence, does the pronoun "its" refer to The Bank? Yes or No?\n',
        NO_YES,
        1,
        "",
    ),
    (
        "wic",
        {"word": "bank", "sentence1": "A river bank.", "sentence2": "The bank shut.", "label": 0},
        'Does the word "bank" have the same meaning in these two sentences? Yes, No?\nA river bank.\nThe bank shut.\n',
        NO_YES,
        0,
        "",
    ),
    (
        "wic",
        {"word": "go", "sentence1": "We go.", "sentence2": "They go.", "label": True},
        'Does the word "go" have the same meaning in these two sentences? Yes, No?\nWe go.\nThey go.\n',
        NO_YES,
        1,
        "",
    ),
    (
        "multirc",
        {"paragraph": "Sam ran.", "question": "Who ran?", "answer": "Sam", "label": 1},
        'Sam ran.\nQuestion: Who ran?\nI found this answer "Sam". Is that correct? Yes or No?\n',
        NO_YES,
        1,
        "",
    ),
    (
        "multirc",
        {"paragraph": "Sam ran.", "question": "Who ran?", "answer": "Tim.", "label": 0},
        'Sam ran.\nQuestion: Who ran?\nI found this answer "Tim.". Is that correct? Yes or No?\n',
        NO_YES,
        0,
        "",
    ),
]


@pytest.mark.parametrize(("name", "row", "prompt", "candidates", "right", "blank"), GOLDEN, ids=lambda v: str(v)[:16])
def test_prompt(
    name: str, row: dict[str, Any], prompt: str, candidates: tuple[str, ...], right: int, blank: str
) -> None:
    """Prompt, candidates, the right one and the prompt without content are those of the paper's table."""
    render = find(name).causal
    assert render is not None and render(row) == Rendered(prompt, candidates, (right,), blank)


@pytest.mark.parametrize(("name", "row", "prompt", "candidates", "right", "blank"), GOLDEN, ids=lambda v: str(v)[:16])
def test_tokens(
    name: str, row: dict[str, Any], prompt: str, candidates: tuple[str, ...], right: int, blank: str, letters: Any
) -> None:
    """With characters as tokens: `<s>` and the prompt are read, exactly the candidate's letters are scored."""
    task = find(name)
    assert task.causal is not None
    objective = OptionLikelihood(letters, task.causal, "causal", 512, Choice(calibrated=True))
    example = objective.encode([row])[0]
    assert example.prompt == (257, *map(ord, prompt))
    assert example.options == tuple(tuple(map(ord, candidate)) for candidate in candidates)
    assert example.label == right and example.blank == (257, *map(ord, blank))
    batch = objective.collate([example])
    # Targets stand at the last positions: the first letter is predicted from the prompt's last position.
    scored = (batch["targets"][0, right] != -100).nonzero().flatten()
    assert len(scored) == len(candidates[right])
    first = batch["input_ids"].shape[2] - batch["targets"].shape[2] + int(scored[0])
    assert first == len(example.prompt) - 1


@pytest.mark.parametrize(
    ("name", "row", "says"),
    [
        ("sst2", {"label": 0}, "no column 'sentence' or 'text'; columns found: label. Remedy: rename"),
        ("sst2", {"sentence": "x"}, "no column 'label'; columns found: sentence"),
        ("sst2", {"sentence": "x", "label": 2}, "column 'label' is 2, none of 0/negative/terrible, 1/positive/great"),
        ("sst2", {"sentence": None, "label": 1}, "column 'sentence' is null"),
        ("sst2", {"sentence": 5, "label": 1}, "column 'sentence' holds 5, not text"),
        ("boolq", {"passage": "x", "question": "y", "answer": "maybe"}, "column 'answer' is 'maybe'"),
        ("wsc", {"text": "x", "span1_text": "a", "label": 1}, "no column 'span2_text'"),
    ],
)
def test_errors_name_the_column(name: str, row: dict[str, Any], says: str) -> None:
    """What is missing or wrong is named, with a remedy."""
    render = find(name).causal
    assert render is not None
    with pytest.raises(DataError) as caught:
        render(row)
    assert says in str(caught.value) and "Remedy: " in str(caught.value)


@pytest.mark.parametrize(("name", "counts"), [("sst2", (3310, 3610)), ("rte", (1249, 1241)), ("cb", (115, 119, 16))])
def test_real_rows(name: str, counts: tuple[int, ...], shared_data: Path) -> None:
    """Every real training row renders; the classes have the sizes of the official data."""
    render = find(name).causal
    assert render is not None
    lines = (shared_data / name / "train.jsonl").read_text(encoding="utf-8").splitlines()
    found = [render(json.loads(line)) for line in lines]
    assert tuple(sum(each.right == (label,) for each in found) for label in range(len(counts))) == counts
    assert len({each.candidates for each in found}) == 1 and all("{" not in each.prompt[-20:] for each in found)


def test_left_truncation_keeps_the_first_token(letters: Any) -> None:
    """An over-long prompt loses its beginning, never `<s>` and never its end; the row says so."""
    render = find("boolq").causal
    assert render is not None
    objective = OptionLikelihood(letters, render, "causal", 20)
    row = {"passage": "A long passage. " * 9, "question": "is it", "answer": True}
    example = objective.encode([row])[0]
    # The longest candidate feeds two of its three letters: 18 places are left for the prompt.
    assert example.prompt == (257, *map(ord, "passage.  Is it?\n")) and len(example.prompt) == 18 and example.cut
    assert max(objective.lengths([example])) == 18 + 2 + 1
