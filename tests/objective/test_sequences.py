"""Batches as plain sequences: their log-probabilities, taken one at a time, make the objectives' own losses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from zotune.data.rendered import Rendered
from zotune.data.template import Template
from zotune.errors import ConfigError
from zotune.objective.base import Objective
from zotune.objective.choice import Choice
from zotune.objective.label_words import LabelWords
from zotune.objective.language_model import LanguageModel
from zotune.objective.options import OptionLikelihood
from zotune.objective.sequences import mean_scores, sequences
from zotune.objective.token_loss import TokenLoss

ROWS = [
    {"text": "a warm and funny film", "label": 1, "choices": [" great", " not terrible at all"], "right": 0},
    {"text": "so bad it hurts", "label": 0, "choices": [" bad", " the plot is a mess", " weak"], "right": 2},
    {"text": "fine", "label": 0, "choices": [" fine", " good or bad ?"], "right": 1},
]
TEMPLATE = Template("{{ text }} . it was")


def render(row: Mapping[str, Any]) -> Rendered:
    return Rendered(f"{row['text']} . it was", tuple(row["choices"]), (row["right"],), "it was")


def mark(row: Mapping[str, Any], coder: Any) -> Any:
    ids = coder.encode([row["text"]])[0]
    return ids, tuple(place % 2 == 1 for place in range(len(ids)))


def objectives(tokenizer: Any) -> dict[str, Objective]:
    return {
        "words of one token": LabelWords(tokenizer, TEMPLATE, "label", ["bad", "great"], None, "causal", 64),
        "words of several": LabelWords(tokenizer, TEMPLATE, "label", ["so bad it", "great"], None, "causal", 64),
        "options": OptionLikelihood(tokenizer, render, "causal", 64),
        "the right option": OptionLikelihood(tokenizer, render, "causal", 64, Choice(loss="target")),
        "a completion": LanguageModel(tokenizer, (TEMPLATE, "text"), 64, "causal"),
        "a text": LanguageModel(tokenizer, "text", 64, "causal"),
        "chosen tokens": TokenLoss(tokenizer, mark, "causal", 64),
    }


def log_probabilities(model: Any, tokens: tuple[int, ...]) -> list[float]:
    """What a server answers: of every token but the first, after those before it."""
    logits = model(input_ids=torch.tensor([tokens])).logits[0, :-1]
    found: Tensor = logits.log_softmax(-1).gather(1, torch.tensor(tokens[1:])[:, None])
    return [float(value) for value in found]


KINDS = [
    "words of one token", "words of several", "options", "the right option", "a completion", "a text", "chosen tokens",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_losses_of_sequences_are_those_of_the_objective(kind: str, tokenizers: Any, make_model: Any) -> None:
    """To 1e-10 in float64, for every form of batch, rows of different lengths and numbers of candidates."""
    model, objective = make_model("llama").eval().double(), objectives(tokenizers["llama"])[kind]
    rows = ROWS[:2] if kind == "chosen tokens" else ROWS  # the last one has no second token
    batch = objective.collate(objective.encode(rows))
    with torch.no_grad():
        expected = objective(model, batch)
        asked = sequences(batch)
        found = [[log_probabilities(model, each.tokens)[place - 1] for place in each.places] for each in asked]
    assert objective.by_scores and all(min(each.places) > 0 for each in asked)
    losses = objective.from_scores(mean_scores(batch, found), batch)
    assert losses.shape == (len(rows),) and losses.dtype == torch.float64
    torch.testing.assert_close(losses, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_other_models_are_refused(family: str, tokenizers: Any) -> None:
    """A mask that sees both sides, and a decoder with an encoder, are not read from left to right."""
    kind: Any = {"bert": "masked", "t5": "seq2seq"}[family]
    template = Template("{{ text }} {{ mask }}" if kind == "masked" else "{{ text }}")
    objective = LabelWords(tokenizers[family], template, "label", ["bad", "great"], None, kind, 64)
    with pytest.raises(ConfigError, match="left to right.*Remedy: --scorer torch"):
        sequences(objective.collate(objective.encode(ROWS)))
