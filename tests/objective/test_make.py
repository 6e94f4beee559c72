"""The objective that a config asks for."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zotune.config import TrainConfig
from zotune.errors import ConfigError
from zotune.load import load_model, load_tokenizer
from zotune.objective.generated import Generated
from zotune.objective.label_words import LabelWords
from zotune.objective.language_model import LanguageModel
from zotune.objective.make import fitted, make_objective
from zotune.objective.options import OptionLikelihood

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


def test_a_task_whose_classes_are_places(config: Config) -> None:
    """COPA's right choice is the first or the second text of a row: no classes that an F1 could be of."""
    settings = config(task="copa", train=None, template=None, label_words=None, objective="macro_f1")
    with pytest.raises(ConfigError, match="macro_f1 needs the same classes in every row. Remedy: --objective accuracy"):
        make_objective(settings, load_tokenizer(settings), load_model(settings))


def test_where_an_answer_of_a_harness_task_ends(config: Config, tmp_path: Path) -> None:
    """As its file says, unless the config says otherwise; where what is generated is trained on too."""
    file = tmp_path / "who.yaml"
    text = "dataset_path: q\ntest_split: test\ndoc_to_text: '{{question}}'\ndoc_to_target: answer\n"
    file.write_text(text + "generation_kwargs: {until: ['.', '!'], max_gen_toks: 7}\n")
    base = {"task": str(file), "train": None, "eval": None, "template": None, "label_words": None}
    tokenizer, model = load_tokenizer(config()), load_model(config())
    for options, most, stop in (
        ({}, 7, (".", "!")),
        ({"max_new_tokens": 9}, 9, (".", "!")),
        ({"stop": ["x"]}, 7, ("x",)),
    ):
        plain = make_objective(config(**base, **options), tokenizer, model)
        assert isinstance(plain, OptionLikelihood) and plain.choice.decoding is not None
        scored = make_objective(config(**base, **options, objective="f1"), tokenizer, model)
        assert isinstance(scored, Generated)
        for decoding in (plain.choice.decoding, scored.decoding):
            assert (decoding.max_new_tokens, decoding.stop) == (most, stop)
    file.write_text(text)
    with pytest.raises(ConfigError, match="answers of 256 tokens leave no room for a prompt in max_length 64. Remedy"):
        make_objective(config(**base, max_length=64), tokenizer, model)
    assert make_objective(config(**base), tokenizer, model).for_evaluation().metric == "f1"


def test_a_task_that_cannot_be_calibrated(config: Config) -> None:
    """Calibration compares candidates after nothing: masked models have no such prompt."""
    settings = config("bert", task="sst2", train=None, template=None, label_words=None, calibrated=True)
    with pytest.raises(ConfigError, match="task sst2 is not calibrated with this model. Remedy: leave --calibrated"):
        make_objective(settings, load_tokenizer(settings), load_model(settings))


LONG = [{"text": "good film " * 50, "label": n % 2} for n in range(2)]


@pytest.mark.filterwarnings("ignore:Position ids are not supported")  # PEFT's, of generated words
@pytest.mark.parametrize(
    ("family", "scope", "kind"),
    [
        *(("gpt2", scope, kind) for scope in ("full", "prompt", "prefix") for kind in ("words", "text", "reward")),
        *(("bert", scope, "words") for scope in ("full", "prompt")),
    ],
)
def test_rows_longer_than_the_positions(config: Config, family: str, scope: str, kind: str) -> None:
    """They are cut to what the model can read beside virtual tokens, and completions have their room too."""
    if scope != "full":
        pytest.importorskip("peft")
    options: dict[str, Any] = {
        "words": {},
        "text": {"label_words": None},
        "reward": {"label_words": None, "objective": "f1", "completion_column": "text", "max_new_tokens": 20},
    }[kind]
    settings = config(family, scope=scope, **options)
    model = load_model(settings)
    objective = make_objective(settings, load_tokenizer(settings), model)
    examples = objective.encode(LONG)
    room = 64 - (0 if scope == "full" else settings.prefix_tokens) - (20 if kind == "reward" else 0)
    assert objective.lengths(examples) == [room, room] and all(example.cut for example in examples)
    assert objective(model, objective.collate(examples)).isfinite().all()


def test_what_is_said_of_a_length(config: Config, caplog: pytest.LogCaptureFixture) -> None:
    """A length that was asked for and is too large is named; the default is lowered without a word, or stays."""
    model, rotary = load_model(config("gpt2")), load_model(config("llama"))
    with caplog.at_level(logging.WARNING):
        assert fitted(config("gpt2"), model).max_length == 64
        assert fitted(config("gpt2", max_length=60), model).max_length == 60
        assert fitted(config("llama", max_length=600), rotary).max_length == 600
    assert not caplog.records
    assert fitted(config("gpt2", max_length=600), model).max_length == 64
    assert caplog.messages == ["The model reads 64 tokens at most, not max_length 600."]
    with pytest.raises(ConfigError, match="max_new_tokens 64 leaves no room for a prompt: the model reads 64 .*Remedy"):
        fitted(config("gpt2", label_words=None, objective="f1", max_new_tokens=64), model)
