"""COPA and ReCoRD: the prompt, the candidates, and what is scored, letter by letter."""

from __future__ import annotations

from typing import Any

import pytest

from zotune.data.rendered import Rendered
from zotune.errors import DataError
from zotune.objective.choice import Choice
from zotune.objective.options import OptionLikelihood
from zotune.tasks.choice import copa, record

COPA = {"premise": "My body cast a shadow.", "choice1": "The sun rose.", "choice2": "I cut it.", "question": "cause"}
RECORD = {
    "passage": "Ann met Bob in Rome.\n@highlight\nBob is ill\n@highlight\nAnn helps",
    "query": "@placeholder, a doctor, gave Bob a pill",
    "entities": ["Bob", "Ann", "Rome", "Ann"],
    "answers": ["Ann"],
}


def test_copa() -> None:
    """The stop goes, the conjunction comes, a choice's first word is small unless it is I."""
    assert copa({**COPA, "label": 0}) == Rendered(
        "My body cast a shadow because", (" the sun rose.", " I cut it."), (0,), "because"
    )
    effect = {"premise": "It rained!", "choice1": "It's wet.", "choice2": "I'm dry.", "question": "effect", "label": 1}
    # Only the word I by itself keeps its letter.
    assert copa(effect) == Rendered("It rained! so", (" it's wet.", " i'm dry."), (1,), "so")


def test_record() -> None:
    """Highlights become dashes, the whole query line is scored, each entity once; any answer is right."""
    found = record(RECORD)
    assert found.prompt == "Ann met Bob in Rome.\n- Bob is ill\n- Ann helps\n-"
    assert found.candidates == (
        " Bob, a doctor, gave Bob a pill",
        " Ann, a doctor, gave Bob a pill",
        " Rome, a doctor, gave Bob a pill",
    )
    assert found.right == (1,) and found.blank == "-"
    several = record({**RECORD, "answers": ["Rome", "Bob", "Rome"]})
    assert several.right == (2, 0)
    as_text = record({**RECORD, "entities": '["Bob", "Ann", "Rome"]', "answers": '["Ann"]'})
    assert as_text == found


def test_tokens_and_scored_positions(letters: Any) -> None:
    """Characters as tokens: the loss is on the right candidate's letters alone, evaluation is on all."""
    objective = OptionLikelihood(letters, copa, "causal", 256, Choice(loss="target"))
    example = objective.encode([{**COPA, "label": 1}])[0]
    assert example.prompt == (257, *map(ord, "My body cast a shadow because"))
    assert example.options == (tuple(map(ord, " the sun rose.")), tuple(map(ord, " I cut it.")))
    batch = objective.collate([example])
    assert batch["targets"].tolist() == [[[*map(ord, " I cut it.")]]]
    assert batch["input_ids"].tolist() == [[[257, *map(ord, "My body cast a shadow because I cut it")]]]
    whole = objective.for_evaluation().collate([example])
    assert whole["input_ids"].shape[1] == 2 and whole["label"].tolist() == [1]


def test_tokens_of_a_query_line(letters: Any) -> None:
    """ReCoRD trains on the whole line of its right entity, and compares those of all entities."""
    objective = OptionLikelihood(letters, record, "causal", 256, Choice(loss="target"))
    example = objective.encode([RECORD])[0]
    assert example.prompt == (257, *map(ord, "Ann met Bob in Rome.\n- Bob is ill\n- Ann helps\n-"))
    line = ", a doctor, gave Bob a pill"
    assert example.options == tuple((*map(ord, f" {name}{line}"),) for name in ("Bob", "Ann", "Rome"))
    batch = objective.collate([example])
    assert batch["targets"].tolist() == [[[*map(ord, f" Ann{line}")]]]
    assert batch["input_ids"].tolist() == [[[*example.prompt, *map(ord, f" Ann{line}"[:-1])]]]
    assert objective.for_evaluation().collate([example])["input_ids"].shape[1] == 3


@pytest.mark.parametrize(
    ("render", "row", "says"),
    [
        (copa, {**COPA, "label": 0, "question": "why"}, "column 'question' is 'why', neither 'cause' nor 'effect'"),
        (copa, {**COPA, "label": 3}, "column 'label' is 3"),
        (record, {**RECORD, "answers": ["Tim"]}, r"none of the answers ['Tim'] is among the entities"),
        (record, {**RECORD, "answers": []}, "column 'answers' holds []"),
        (record, {**RECORD, "query": "x"}, "has no @placeholder"),
        (record, {**RECORD, "entities": "Ann, Bob"}, "column 'entities' holds 'Ann, Bob', which is no JSON"),
    ],
)
def test_errors(render: Any, row: dict[str, Any], says: str) -> None:
    """Rows that cannot be used are named."""
    with pytest.raises(DataError) as caught:
        render(row)
    assert says in str(caught.value) and "Remedy: " in str(caught.value)
