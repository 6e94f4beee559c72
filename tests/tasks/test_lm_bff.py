"""The prompts for masked models, letter by letter, and where the mask is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.tasks.conftest import characters
from transformers import AddedToken

from zotune.data.rendered import MASK
from zotune.objective.choice import Choice
from zotune.objective.options import OptionLikelihood
from zotune.tasks import TASKS, find

PAIR = {"premise": "A man sleeps.", "hypothesis": "The man is awake"}
GOLDEN: list[tuple[str, dict[str, Any], str, str]] = [
    ("sst2", {"sentence": "a dull film ", "label": 0}, "a dull film It was<mask>.", " terrible"),
    ("sst2", {"sentence": "Fun", "label": 1}, "Fun It was<mask>.", " great"),
    ("sst5", {"text": "so so", "label": 2}, "so so It was<mask>.", " okay"),
    ("sst5", {"text": "best ever", "label": "very positive"}, "best ever It was<mask>.", " great"),
    # The first sentence loses its last character, the second its first capital letter.
    ("snli", {**PAIR, "label": 2}, "A man sleeps?<mask>, the man is awake", " No"),
    ("snli", {**PAIR, "label": "entailment"}, "A man sleeps?<mask>, the man is awake", " Yes"),
    ("mnli", {**PAIR, "label": 1}, "A man sleeps?<mask>, the man is awake", " Maybe"),
    ("mnli", {"premise": "Go!", "hypothesis": "I go", "label": 0}, "Go?<mask>, i go", " Yes"),
    ("rte", {**PAIR, "label": 1}, "A man sleeps?<mask>, the man is awake", " No"),
    ("rte", {"sentence1": "It rains.", "sentence2": "Rain", "label": 0}, "It rains?<mask>, rain", " Yes"),
    ("qnli", {"question": "Who?", "sentence": "Bob did.", "label": 0}, "Who?<mask>, bob did.", " Yes"),
    ("qnli", {"question": "Why", "sentence": "No.", "label": 1}, "Wh?<mask>, no.", " No"),
    ("qqp", {"question1": "Who?", "question2": "Which?", "label": 1}, "Who?<mask>, which?", " Yes"),
    ("qqp", {"question1": "Who?", "question2": "Why?", "label": 0}, "Who?<mask>, why?", " No"),
    ("mrpc", {"sentence1": "It fell .", "sentence2": "It rose .", "label": 0}, "It fell .<mask>, it rose .", " No"),
    ("mrpc", {"sentence1": "A", "sentence2": "B", "label": "equivalent"}, "A<mask>, b", " Yes"),
    (
        "trec",
        {"text": "What is RAM ?", "label_coarse_original": "ABBR", "label": 9},
        "<mask>: What is RAM ?",
        " Expression",
    ),
    ("trec", {"text": "Who is he ?", "label": 3}, "<mask>: Who is he ?", " Human"),
    ("mr", {"text": "a mess .", "label": 0}, "a mess . It was<mask>.", " terrible"),
    ("mr", {"text": "warm", "label": 1}, "warm It was<mask>.", " great"),
    ("cr", {"text": "it broke", "label": 0}, "it broke It was<mask>.", " terrible"),
    ("cr", {"text": "it works", "label": 1}, "it works It was<mask>.", " great"),
    ("mpqa", {"sentence": "praised", "label": "1"}, "praised It was<mask>.", " great"),
    ("mpqa", {"sentence": "blamed", "label": "0"}, "blamed It was<mask>.", " terrible"),
    ("subj", {"text": "he goes home", "label": 0}, "he goes home This is<mask>.", " objective"),
    ("subj", {"text": "a bore", "label": 1}, "a bore This is<mask>.", " subjective"),
    ("cola", {"sentence": "He go.", "label": 0}, "He go. This is<mask>.", " incorrect"),
    ("cola", {"sentence": "He goes.", "label": 1}, "He goes. This is<mask>.", " correct"),
]


@pytest.mark.parametrize(("name", "row", "prompt", "word"), GOLDEN, ids=lambda value: str(value)[:16])
def test_prompt(name: str, row: dict[str, Any], prompt: str, word: str) -> None:
    """The prompt, and the word that the gap should hold."""
    render = find(name).masked
    assert render is not None
    found = render(row)
    assert (found.prompt, found.candidates[found.right[0]]) == (prompt, word)
    assert found.prompt.count(MASK) == 1 and found.blank is None


def test_every_masked_task_has_two_rows_here() -> None:
    """None is left out of the test above."""
    masked = {name for name, task in TASKS.items() if task.masked is not None}
    assert {name for name, *_ in GOLDEN} == masked
    assert all(sum(name == each for each, *_ in GOLDEN) >= 2 for name in masked)


def test_tokens(letters_with_mask: Any) -> None:
    """The mask token stands where the gap is; words must be one token."""
    render = find("trec").masked
    assert render is not None

    def short(row: Any) -> Any:
        found = render(row)
        return type(found)(found.prompt, tuple("XEDHLN"), found.right)

    objective = OptionLikelihood(letters_with_mask, short, "masked", 64)
    example = objective.encode([{"text": "Who ?", "label": 3}])[0]
    assert example.prompt == (258, *map(ord, ": Who ?")) and example.mask == 0 and example.label == 3
    assert example.options == tuple((ord(letter),) for letter in "XEDHLN")
    batch = objective.collate([example])
    assert batch["position"].tolist() == [0] and batch["words"].tolist() == [[*map(ord, "XEDHLN")]]


@pytest.mark.parametrize(("name", "row", "prompt", "word"), GOLDEN, ids=lambda value: str(value)[:16])
def test_ids_and_the_scored_position(name: str, row: dict[str, Any], prompt: str, word: str) -> None:
    """Every task's rows with characters as tokens and its words as one each: read as written, scored at the gap."""
    render = find(name).masked
    assert render is not None
    tokenizer, words = characters(begin=True, mask=True), render(row).candidates
    tokenizer.add_tokens([AddedToken(each, normalized=False) for each in words])
    objective = OptionLikelihood(tokenizer, render, "masked", 512)
    example = objective.encode([row])[0]
    before, after = prompt.split("<mask>")
    assert example.prompt == (257, *map(ord, before), 258, *map(ord, after))
    assert example.mask == 1 + len(before)
    assert example.options == tuple((260 + index,) for index in range(len(words)))
    assert words[example.label] == word
    batch = objective.collate([example])
    assert batch["position"].tolist() == [1 + len(before)]
    assert batch["words"].tolist() == [[260 + index for index in range(len(words))]]


def test_limits_are_counted_in_tokens(letters_with_mask: Any) -> None:
    """A column that is limited loses its end before the prompt is made; others are left alone."""
    render = find("rte").masked
    assert render is not None

    def short(row: Any) -> Any:
        found = render(row)
        return type(found)(found.prompt, ("Y", "N"), found.right)

    objective = OptionLikelihood(letters_with_mask, short, "masked", 64, Choice(limits={"premise": 8}))
    example = objective.encode([{**PAIR, "label": 0}])[0]
    assert example.prompt == (*map(ord, "A man s?"), 258, *map(ord, ", the man is awake"))
    assert find("rte").limits["premise"] == 240 and find("trec").limits == {"text": 110}


@pytest.mark.parametrize(("name", "classes"), [("mr", 2), ("subj", 2), ("trec", 6), ("rte", 2), ("sst2", 2)])
def test_real_rows(name: str, classes: int, shared_data: Path) -> None:
    """Every real row renders, and every class occurs."""
    render = find(name).masked
    assert render is not None
    lines = (shared_data / name / "train.jsonl").read_text(encoding="utf-8").splitlines()
    found = [render(json.loads(line)) for line in lines]
    assert {each.right[0] for each in found} == set(range(classes))
