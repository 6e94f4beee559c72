"""SQuAD and DROP: prompt, training target and the answers that count."""

from __future__ import annotations

from typing import Any

import pytest

from zotune.data.rendered import Rendered
from zotune.errors import DataError
from zotune.objective.choice import ANSWER_TOKENS, Choice
from zotune.objective.options import OptionLikelihood
from zotune.tasks.reading import drop, squad

SQUAD = {
    "title": "Super_Bowl_50",
    "context": "Denver won.",
    "question": " Who won? ",
    "answers": {"text": ["Denver", "Denver Broncos"], "answer_start": [0, 0]},
}
DROP = {
    "passage": "He ran 5 yards, then 7.",
    "question": "How many yards?",
    "answers_spans": {"spans": ["12"], "types": ["number"]},
}


def test_squad() -> None:
    """The first answer and a line end are the target, all answers count."""
    assert squad(SQUAD) == Rendered(
        "Title: Super_Bowl_50\nContext: Denver won.\nQuestion: Who won?\nAnswer:",
        (" Denver\n",),
        answers=("Denver", "Denver Broncos"),
    )
    as_text = {**SQUAD, "answers": '{"text": ["Denver", "Denver Broncos"], "answer_start": [0, 0]}'}
    assert squad(as_text) == squad(SQUAD)
    assert squad({**SQUAD, "answers": ["Denver", "Denver Broncos"]}) == squad(SQUAD)


def test_drop() -> None:
    """The spans are the answers."""
    prompt = "Passage: He ran 5 yards, then 7.\nQuestion: How many yards?\nAnswer:"
    assert drop(DROP) == Rendered(prompt, (" 12\n",), answers=("12",))


def test_tokens(letters: Any) -> None:
    """Scored are the space, the answer and the line end; the prompt leaves room for an answer to be generated."""
    objective = OptionLikelihood(letters, drop, "causal", 80, Choice(loss="target", metric="f1"))
    example = objective.encode([DROP])[0]
    assert example.options == ((*map(ord, " 12\n"),),) and example.answers == ("12",)
    assert len(example.prompt) == 80 - ANSWER_TOKENS and example.prompt[0] == 257 and example.cut
    assert example.prompt[1:] == (*map(ord, "7.\nQuestion: How many yards?\nAnswer:"[-29:]),)


@pytest.mark.parametrize(("render", "row", "target"), [(squad, SQUAD, " Denver\n"), (drop, DROP, " 12\n")])
def test_the_answer_alone_is_scored(render: Any, row: dict[str, Any], target: str, letters: Any) -> None:
    """What is read ends with `Answer:`; the targets are the letters of the first answer and its line end."""
    objective = OptionLikelihood(letters, render, "causal", 512, Choice(loss="target", metric="f1"))
    example = objective.encode([row])[0]
    assert example.prompt == (257, *map(ord, render(row).prompt)) and not example.cut
    batch = objective.collate([example])
    assert batch["targets"].tolist() == [[[*map(ord, target)]]]
    assert batch["input_ids"].tolist() == [[[*example.prompt, *map(ord, target[:-1])]]]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({**SQUAD, "answers": {"text": []}}, "column 'answers' holds []"),
        ({**SQUAD, "answers": {"spans": ["x"]}}, "column 'answers' has no 'text'"),
        ({**SQUAD, "answers": None}, "column 'answers' is null"),
    ],
)
def test_errors(row: dict[str, Any], says: str) -> None:
    """A row without an answer is named."""
    with pytest.raises(DataError) as caught:
        squad(row)
    assert says in str(caught.value)
