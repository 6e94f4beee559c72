"""In-context learning: the prompt is what it would be as text, as many demonstrations as fit, scores as everywhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from zotune.baselines import in_context
from zotune.baselines.in_context import demonstrated
from zotune.config import TrainConfig
from zotune.errors import ConfigError
from zotune.load import load_tokenizer
from zotune.session import Session

Config = Callable[..., TrainConfig]


def test_prompt_is_the_joined_text(config: Config, movies: Path) -> None:
    """Answered rows, each once, then the row that is asked; the tokenizer's first token stands once, in front."""
    session = Session(config())
    tokenizer = load_tokenizer(session.config)
    train, held_out = (
        [json.loads(line) for line in (movies / f"{name}.jsonl").read_text().splitlines()] for name in ("train", "eval")
    )
    answered = {f"{row['text']} it was {['terrible', 'great'][row['label']]}" for row in train}
    first = demonstrated(session, 3, seed=1)
    drawn = []
    for example, asked in zip(first, held_out, strict=True):
        said = tokenizer.decode(example.prompt)
        text = said.removeprefix("[CLS] ").removesuffix(f"{asked['text']} it was").strip()
        assert said.startswith("[CLS] ") and said.count("[CLS]") == 1
        assert len(_cover(text, answered)) == 3
        drawn.append(text)
        assert tuple(tokenizer(f"{text} {asked['text']} it was")["input_ids"]) == example.prompt
    assert len(set(drawn)) > 5  # each row has its own
    assert demonstrated(session, 3, seed=1) == first != demonstrated(session, 3, seed=2)


def _cover(text: str, parts: set[str]) -> list[str]:
    """The parts that the text is made of, in order."""
    found: list[str] = []
    while text:
        part = next((p for p in sorted(parts, key=len, reverse=True) if text.startswith(p)), None)
        assert part is not None, text
        found.append(part)
        text = text[len(part) :].strip()
    return found


def test_as_many_as_there_are_positions_for(config: Config) -> None:
    """A model with a table of positions is not shown more than it can read."""
    session = Session(config("gpt2"))
    lengths = [len(example.prompt) for example in demonstrated(session, 22, seed=3)]
    assert 50 < max(lengths) <= 64
    assert in_context(session, 22).examples == 10


def test_as_many_as_fit(config: Config) -> None:
    """Whole demonstrations are left out, the prompt itself never is; one more would be too long."""
    session = Session(config(max_length=24))
    bare, few, many = (demonstrated(session, shots, seed=3) for shots in (0, 1, 32))
    assert bare == session.eval_examples
    for plain, one, all_ in zip(bare, few, many, strict=True):
        assert all_.prompt[-len(plain.prompt) + 1 :] == plain.prompt[1:] and len(all_.prompt) <= 24
        assert one.options == all_.options == plain.options
        assert len(plain.prompt) <= len(one.prompt) <= len(all_.prompt)
    assert {len(e.prompt) for e in many} != {len(e.prompt) for e in bare}
    long = Session(config(max_length=10_000))
    everything = sum(len(e.prompt) - 1 + len(e.options[e.label]) for e in long.examples)
    assert [len(e.prompt) - len(b.prompt) for e, b in zip(demonstrated(long, 99), bare, strict=True)] == [
        everything
    ] * 10


def test_scores(config: Config) -> None:
    """Zero shots are the session's own evaluation; with some, the accuracy is that of single forwards."""
    session = Session(config(max_length=60))
    assert in_context(session, 0) == session.evaluate()
    found, correct, losses = in_context(session, 2, seed=1), 0, []
    for example in demonstrated(session, 2, seed=1):
        with torch.no_grad():
            logits = session.model(input_ids=torch.tensor([example.prompt])).logits[0, -1]
        words = logits[[option[0] for option in example.options]].log_softmax(0)
        correct += int(words.argmax()) == example.label
        losses.append(-float(words[example.label]))
    assert found.correct == correct and found.loss == pytest.approx(sum(losses) / 10, abs=1e-5)
    assert found.loss != in_context(session, 0).loss


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"family": "bert"}, "needs a causal model and rows with candidates. Remedy"),
        ({"label_words": None, "template": None}, "needs a causal model and rows with candidates. Remedy"),
        ({"eval": None}, "no rows to evaluate on. Remedy: --eval FILE"),
    ],
)
def test_refusals(config: Config, options: dict[str, Any], said: str) -> None:
    """What cannot have demonstrations is told so."""
    with pytest.raises(ConfigError, match=said):
        in_context(Session(config(**options)))
    with pytest.raises(ValueError, match="shots must be at least 0"):
        demonstrated(Session(config()), -1)
    untrained = Session(config())
    untrained.examples = []
    with pytest.raises(ConfigError, match="needs training rows. Remedy: --train FILE"):
        in_context(untrained)
