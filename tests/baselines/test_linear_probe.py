"""Linear probing: the features are what the head reads, the fit is the optimum, what can be read off is found."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models import normals
from tests.tiny import WORDS

from zotune.baselines import linear_probe
from zotune.baselines.linear_probe import features, fit
from zotune.config import TrainConfig
from zotune.errors import ConfigError
from zotune.head import head_of
from zotune.session import Session

Config = Callable[..., TrainConfig]


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5"])
def test_the_head_makes_the_answers_logits_of_them(config: Config, family: str) -> None:
    """In batches of several lengths, the head's output on a feature is the logits of that row alone."""
    session = Session(config(family, eval_batch_size=4))
    model: Any = session.model
    found = features(session, session.eval_examples or [])
    assert found.dtype == torch.float64 and found.shape == (10, 16)
    for example, feature in zip(session.eval_examples or [], found, strict=True):
        ids = torch.tensor([example.prompt])
        with torch.no_grad():
            if family == "t5":
                logits = model(input_ids=ids, decoder_input_ids=torch.tensor([[0]])).logits[0, -1]
            else:
                logits = model(input_ids=ids).logits[0, example.mask]  # -1, the last, where there is no mask
            made = head_of(model)(feature.float())
        torch.testing.assert_close(made, logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("penalty", [1e-2, 1.0, 100.0])
def test_fit_is_the_optimum(penalty: float) -> None:
    """The gradient, written out, vanishes: the problem is convex."""
    x, labels = normals((60, 7), 1, torch.float64), torch.arange(60) % 3
    weight = fit(x, labels, 3, penalty)
    chances = (x @ weight.T).softmax(1) - torch.nn.functional.one_hot(labels, 3)
    assert float((chances.T @ x + penalty * weight).abs().max()) < 1e-4 and float(weight.abs().max()) > 1e-3


def test_finds_what_can_be_read_off(config: Config, tmp_path: Path) -> None:
    """A label that hangs on the last word is found in a random model's states, and the same again."""
    draw = random.Random(1)
    for name, rows in (("train", 80), ("eval", 40)):
        texts = [" ".join(draw.choices(WORDS, k=draw.randint(1, 4))) for _ in range(rows)]
        lines = [{"text": f"{t} {('bad', 'good')[i % 2]}", "label": i % 2} for i, t in enumerate(texts)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    files = {"train": tmp_path / "train.jsonl", "eval": tmp_path / "eval.jsonl"}
    session = Session(config(**files, template="{{ text }}"))
    found, zero_shot = linear_probe(session), session.evaluate()
    assert zero_shot is not None and zero_shot.accuracy is not None and found.accuracy is not None
    assert found.accuracy >= 0.9 > zero_shot.accuracy and found.examples == 40 and found.loss < zero_shot.loss
    assert found.low is not None and found.high is not None and found.low < found.accuracy <= found.high
    assert linear_probe(session) == found


def test_features_that_are_nan_tell_nothing(config: Config) -> None:
    """A model that gives NaN has no row right, those of the first class neither."""
    session = Session(config())
    model: Any = session.model
    torch.nn.init.constant_(model.model.norm.weight, float("nan"))
    found = linear_probe(session)
    assert (found.correct, found.accuracy) == (0, 0.0) and math.isnan(found.loss)


def test_refusals(config: Config, tmp_path: Path) -> None:
    """No rows, and candidates that are not the same in every row."""
    with pytest.raises(ConfigError, match="needs training and held-out rows. Remedy"):
        linear_probe(Session(config(eval=None)))
    with pytest.raises(ConfigError, match="needs the same candidates in every row. Remedy"):
        linear_probe(Session(config(label_words=None, template=None)))
    rows = [{"question": "a film", "choices": [a, b], "answer": 0} for a, b in (("good", "bad"), ("fine", "dull"))]
    (tmp_path / "choices.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    several = config(
        train=tmp_path / "choices.jsonl", eval=tmp_path / "choices.jsonl", label_words=None, template="{{ question }}"
    )
    with pytest.raises(ConfigError, match="needs the same candidates in every row. Remedy"):
        linear_probe(Session(several))
