"""Accuracy and macro F1 as losses: against counting by hand, for every kind of candidates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from tests import models

from zotune.data.rendered import Rendered
from zotune.data.template import Template
from zotune.evaluate import evaluate
from zotune.objective.decided import Decided, macro_f1
from zotune.objective.label_words import LabelWords
from zotune.objective.options import OptionLikelihood
from zotune.objective.scoring import NONE

one_thread = models.one_thread
ROWS = [
    {"text": text, "label": label}
    for text, label in [
        ("a warm film", 1), ("the plot is a mess", 0), ("great acting", 1), ("so bad it hurts", 0), ("fine", 2),
        ("the script is weak", 0), ("funny", 1),
    ]
]  # fmt: skip
WORDS = {"one token": ["bad", "great", "fine"], "several": ["it was bad", "great acting", "fine"]}


def by_hand(predicted: list[int], label: list[int]) -> float:
    """Macro F1 from its definition."""
    scores = []
    for each in sorted({*predicted, *label} - {NONE}):
        hit = sum(p == q == each for p, q in zip(predicted, label, strict=True))
        precision = hit / predicted.count(each) if each in predicted else 0.0
        recall = hit / label.count(each) if each in label else 0.0
        scores.append(2 * precision * recall / (precision + recall) if hit else 0.0)
    return sum(scores) / len(scores)


@pytest.mark.parametrize(
    ("predicted", "label"),
    [
        ([0, 1, 2, 1, 0], [0, 1, 1, 1, 2]),
        ([0, 0], [0, 0]),
        ([1, 1], [0, 0]),
        ([2, 0, 2], [0, 2, 2]),
        ([NONE, 1, 0], [0, 1, 1]),
        ([NONE, NONE], [0, 1]),
    ],
)
def test_macro_f1(predicted: list[int], label: list[int]) -> None:
    """Classes that are neither predicted nor right do not count, and no prediction is of no class."""
    assert float(macro_f1(torch.tensor(predicted), torch.tensor(label), 4)) == pytest.approx(by_hand(predicted, label))


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_losses_and_evaluation(words: str, metric: Any, tokenizers: Any, make_model: Any) -> None:
    """The loss of a batch, and the evaluation over batches, are those of the predictions counted by hand."""
    inner = LabelWords(
        tokenizers["llama"], Template("{{ text }} it was"), "label", WORDS[words], [0, 1, 2], "causal", 64
    )
    objective, model = Decided(inner, metric), make_model("llama")
    examples = objective.encode(ROWS)
    with torch.no_grad():
        predicted = inner.predict(model, inner.collate(examples)).tolist()
        losses = objective(model, objective.collate(examples))
    label = [row["label"] for row in ROWS]
    right = [p == q for p, q in zip(predicted, label, strict=True)]
    assert len(set(predicted)) > 1 and 0 < sum(right) < len(right)  # a test that could fail
    found = evaluate(model, objective.for_evaluation(), examples, 2)
    if metric == "accuracy":
        assert losses.tolist() == [-float(each) for each in right]
        assert found.accuracy == sum(right) / len(right) == -found.loss
    else:
        assert losses.shape == () and float(losses) == pytest.approx(-by_hand(predicted, label))
        assert found.score == pytest.approx(by_hand(predicted, label)) == -found.loss
        assert found.as_dict()["macro_f1"] == found.score and found.accuracy is None and objective.set_level


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
@pytest.mark.parametrize("form", [*WORDS, "options"])
def test_scores_that_are_nan_are_wrong(form: str, metric: Any, tokenizers: Any, make_model: Any) -> None:
    """Nothing is predicted, so every row is wrong, not those with the first label right; a step's loss is NaN."""

    def render(row: Mapping[str, Any]) -> Rendered:
        return Rendered(row["text"], (" bad", " great", " fine"), (row["label"],))

    template = Template("{{ text }} it was")
    inner = (
        OptionLikelihood(tokenizers["llama"], render, "causal", 64)
        if form == "options"
        else LabelWords(tokenizers["llama"], template, "label", WORDS[form], [0, 1, 2], "causal", 64)
    )
    objective, model = Decided(inner, metric), make_model("llama")
    examples = objective.encode(ROWS)
    torch.nn.init.constant_(model.model.norm.weight, float("nan"))
    with torch.no_grad():
        assert bool(objective(model, objective.collate(examples)).isnan().all())
    found = evaluate(model, objective.for_evaluation(), examples, 2)
    assert (found.correct, found.accuracy) == (0, 0.0) if metric == "accuracy" else found.score == 0.0
