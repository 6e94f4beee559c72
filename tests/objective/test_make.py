"""The objective that a config asks for."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from zotune.config import TrainConfig
from zotune.errors import ConfigError
from zotune.load import load_model, load_tokenizer
from zotune.objective.label_words import LabelWords
from zotune.objective.language_model import LanguageModel
from zotune.objective.make import make_objective

Config = Callable[..., TrainConfig]


def test_objectives(config: Config) -> None:
    """Label words give classification; without them the text, or the completion after the prompt, is learnt."""
    settings = config()
    tokenizer, model = load_tokenizer(settings), load_model(settings)
    assert isinstance(make_objective(settings, tokenizer, model), LabelWords)
    plain = make_objective(config(label_words=None), tokenizer, model)
    pair = make_objective(
        config(label_words=None, completion_column="more", template="{{ text }} is"), tokenizer, model
    )
    rows = [{"text": "the film", "more": " good"}]
    assert isinstance(plain, LanguageModel) and isinstance(pair, LanguageModel)
    whole, after = plain.encode(rows)[0], pair.encode(rows)[0]
    assert len(whole.options[0]) == 2 and len(after.options[0]) == 1 and len(after.prompt) == 4


def test_default_template(config: Config) -> None:
    """Without a template the prompt is the text column; a name that no template can hold is explained."""
    settings = config(template=None, text_column="review")
    tokenizer, model = load_tokenizer(settings), load_model(settings)
    rows = [{"review": "good film", "label": 0}, {"review": "dull film", "label": 1}]
    assert len(make_objective(settings, tokenizer, model).encode(rows)[0].prompt) == 3
    with pytest.raises(ConfigError, match="column 'a review' cannot be named in a template. Remedy: rename it"):
        make_objective(config(template=None, text_column="a review"), tokenizer, model)
    plain = make_objective(config(template=None, text_column="a review", label_words=None), tokenizer, model)
    assert plain.encode([{"a review": "good film"}])


@pytest.mark.parametrize(("task", "family", "other"), [("copa", "bert", "causal"), ("trec", "llama", "masked")])
def test_a_task_without_a_prompt_for_the_model(config: Config, task: str, family: str, other: str) -> None:
    """The refusal says for which models it has one, and which tasks there are for this one."""
    settings = config(family, task=task, train=None, template=None, label_words=None)
    with pytest.raises(ConfigError, match=f"task {task} has a prompt for {other} models only. Remedy: .*sst2"):
        make_objective(settings, load_tokenizer(settings), load_model(settings))


def test_a_task_that_cannot_be_calibrated(config: Config) -> None:
    """Calibration compares candidates after nothing: masked models have no such prompt."""
    settings = config("bert", task="sst2", train=None, template=None, label_words=None, calibrated=True)
    with pytest.raises(ConfigError, match="task sst2 is not calibrated with this model. Remedy: leave --calibrated"):
        make_objective(settings, load_tokenizer(settings), load_model(settings))
