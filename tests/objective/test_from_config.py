"""Runs on a score, from their options: trained, interrupted, replayed without the function, evaluated."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zotune.config import TrainConfig
from zotune.data.look import look
from zotune.errors import ConfigError, DataError, FunctionError
from zotune.history.verify import verify
from zotune.journal import read
from zotune.revisit import evaluate_run, log_rows, replay
from zotune.session import Session
from zotune.train import resume, train
from zotune.watch import Console, Quiet

SOURCE = """
from pathlib import Path

NOTE = Path(__file__).with_suffix(".note")
with NOTE.open("a") as file:
    file.write("imported ")

def short(prompts, completions, label, **columns):
    return [1 / (1 + len(each)) + 0.1 * right for each, right in zip(completions, label, strict=True)]

def spread(predictions, references):
    return len({*predictions}) / len(predictions) + sum(map(len, predictions)) / 100

def once(completions):
    with NOTE.open("a") as file:
        file.write("x")
    if NOTE.read_text().count("x") == 6:
        raise RuntimeError("out of order")
    return [float(len(each)) for each in completions]
"""
GENERATED: dict[str, Any] = {"label_words": None, "max_new_tokens": 4, "scope": "norms", "eps": 0.2, "lr": 0.1}


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A file of functions that notes when it is imported."""
    path = tmp_path / "own.py"
    path.write_text(SOURCE)
    return path


def notes(own: Path) -> str:
    """What the file has noted."""
    path = own.with_suffix(".note")
    return path.read_text() if path.exists() else ""


@pytest.fixture
def answered(tmp_path: Path, movies: Path) -> Path:
    """The movies' rows with an answer."""
    rows = [json.loads(line) for line in (movies / "train.jsonl").read_text().splitlines()]
    path = tmp_path / "answered.jsonl"
    path.write_text("".join(json.dumps({**row, "answer": row["text"].split()[0]}) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("options", "measured"),
    [
        ({"reward": ["{}:short"]}, "reward"),
        ({"reward": ["{}:short", "f1"], "reward_weights": [1.0, 0.5], "completion_column": "answer"}, "reward"),
        ({"metric": "{}:spread", "completion_column": "answer"}, "metric"),
        ({"objective": "f1", "completion_column": "answer", "temperature": 0.7, "micro_batch_size": 4}, "f1"),
        ({"objective": "exact_match", "completion_column": "answer"}, "exact_match"),
    ],
    ids=["reward", "weighted", "metric", "f1", "exact_match"],
)
def test_a_run_on_completions(
    config: Callable[..., TrainConfig], own: Path, answered: Path, options: dict[str, Any], measured: str
) -> None:
    """It ends, is measured before and after, replays to the same hash, and its evaluation is what the run said."""
    named = {key: [each.format(own) for each in value] if key == "reward" else value for key, value in options.items()}
    if "metric" in named:
        named["metric"] = named["metric"].format(own)
    settings = config(**{**GENERATED, **named, "train": answered, "eval": answered, "steps": 4})
    found = train(settings, Quiet())
    assert found["steps"] == 4 and isinstance(found[f"{measured}_before"], float) and found["accuracy_after"] is None
    again = evaluate_run(settings, settings.output_dir, Quiet(), trust_reward=True)
    assert again[measured] == found[f"{measured}_after"] and again["loss"] == pytest.approx(-again[measured])
    imported = notes(own)
    assert replay(settings.output_dir, True, Quiet())["weights_sha256"] == found["weights_sha256"]
    assert verify(settings.output_dir, Quiet())["verified"] and notes(own) == imported


@pytest.mark.parametrize(("family", "scope"), [("gpt2", "norms"), ("t5", "norms"), ("llama", "lora")])
def test_other_families(config: Callable[..., TrainConfig], own: Path, family: str, scope: str) -> None:
    """GPT-2 (tied weights), an encoder-decoder, and adapters."""
    template = "{{ text }}" if family == "t5" else "{{ text }} it was"
    options = {**GENERATED, "scope": scope, "template": template, "steps": 2}
    settings = config(family, **options, reward=[f"{own}:short"])
    assert isinstance(train(settings, Quiet())["reward_after"], float)


def test_look(config: Callable[..., TrainConfig], answered: Path) -> None:
    """`zotune data` shows the prompt, and as scored what is right."""
    found = look(config(**{**GENERATED, "objective": "f1", "completion_column": "answer", "train": answered}))
    assert found["shape"] == "prompt: its completion is generated and scored" and found["rows"] == 22
    (first, *_) = found["examples"]
    assert "".join(text for text, _, _ in first["prompt"]).endswith("it was")
    row = json.loads(answered.read_text().splitlines()[0])
    assert [text.strip() for text, _, _ in first["options"][0]] == [row["answer"]]


def test_decided(config: Callable[..., TrainConfig]) -> None:
    """Accuracy rides in lanes and reuses activations; macro F1 is one number; both are measured."""
    found = train(config(objective="accuracy", scope="norms&last:1", eps=0.5), Quiet())
    assert 0 <= found["accuracy_after"] <= 1 and found["loss_after"] == -found["accuracy_after"]
    session = Session(config(objective="accuracy", scope="norms&last:1", eps=0.5)).begin()
    assert session.optimizer.evaluator.mode == "lanes" and session.reuse.depth > 0
    other = config(objective="macro_f1", output_dir=config().output_dir / "other", eps=0.5)
    found = train(other, Quiet())
    assert found["loss_after"] == -found["macro_f1_after"] and 0 < found["macro_f1_after"] < 1
    assert Session(other).begin().optimizer.evaluator.mode == "sequential"


def test_an_interrupted_run_ends_as_if_nothing_happened(
    config: Callable[..., TrainConfig], own: Path, tmp_path: Path
) -> None:
    """A reward that raises in the midst: nothing before it is lost; once mended, the run ends with the same bytes."""
    options = {**GENERATED, "eval": None, "reward": [f"{own}:once"]}
    settings = config(**options)
    with pytest.raises(FunctionError, match="own.py:once failed at step 2: RuntimeError: out of order .*was applied"):
        train(settings, Quiet())
    run = settings.output_dir
    assert [row["step"] for row in log_rows(run)] == [0, 1]
    with pytest.raises(ConfigError, match="names code, .*own.py:once, which is not run unasked.*--trust-reward"):
        resume(run, Quiet())
    own.write_text(SOURCE.replace("== 6", "== -1"))
    found = resume(run, Console(), trust_reward=True)
    whole = train(config(**{**options, "output_dir": tmp_path / "whole"}), Quiet())
    assert found["weights_sha256"] == whole["weights_sha256"] and found["steps"] == 7


def test_code_that_changed_is_said(
    config: Callable[..., TrainConfig], own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A resumed run tells of a reward that is no longer what it was; a moved file is still the same one."""
    train(config(**GENERATED, reward=[f"{own}:short"]), Quiet())
    run = config().output_dir
    header = read(run / "journal.zoj")[0]
    assert list(header["functions"]) == ["own.py:short"] and header["config"]["reward"] == ["own.py:short"]
    resume(run, Console(), trust_reward=True)
    assert "has changed" not in capsys.readouterr().err
    (tmp_path / "moved").mkdir()
    moved = own.rename(tmp_path / "moved" / "own.py")
    moved.write_text(SOURCE + "\n")
    file = run / "config.yaml"
    file.write_text(file.read_text().replace(str(own), str(moved)))
    resume(run, Console(), trust_reward=True)
    assert "code of own.py:short has changed since the run began" in capsys.readouterr().err


def test_functions_from_python(config: Callable[..., TrainConfig]) -> None:
    """A function in place of a name; the run says what it was called, and goes on with what it is given."""

    def long(completions: list[str]) -> list[float]:
        return [float(len(each)) for each in completions]

    found = train(config(**GENERATED), Quiet(), rewards=long)
    run = config().output_dir
    assert found["reward_after"] >= 0 and "long" in read(run / "journal.zoj")[0]["config"]["reward"][0]
    assert resume(run, Quiet(), rewards=[long])["weights_sha256"] == found["weights_sha256"]
    with pytest.raises(ConfigError, match="--trust-reward"):
        resume(run, Quiet())


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"objective": "accuracy"}, ConfigError, "needs candidates to choose from. Remedy: give --label-words"),
        ({"objective": "f1"}, DataError, "f1 compares with what is right, and the rows have no column 'completion'"),
        ({"reward": ["nowhere.py:f"]}, ConfigError, "nowhere.py is no file"),
        ({"reward": ["statistics:fmean"]}, ConfigError, "needs an argument 'data', which no column gives"),
        ({"reward": ["f1"], "method": "grzo", "family": "bert", "template": "{{ mask }}"}, ConfigError, "masked model"),
        ({"metric": "statistics:fmean", "method": "grzo"}, ConfigError, "needs an argument 'data'"),
    ],
)
def test_refused_before_a_step(
    config: Callable[..., TrainConfig], options: dict[str, Any], error: Any, says: str
) -> None:
    """What cannot be scored is said at once."""
    with pytest.raises(error, match=f"{says}.*"):
        train(config(**{"label_words": None, "scope": "norms", **options}), Quiet())


def test_refused_combinations(config: Callable[..., TrainConfig], own: Path, answered: Path) -> None:
    """One number for a batch and a loss for each example."""
    options = {**GENERATED, "train": answered, "eval": None, "completion_column": "answer", "metric": f"{own}:spread"}
    with pytest.raises(ConfigError, match="grzo needs a loss for each example, and own.py:spread.*one number.*Remedy"):
        Session(config(**options, method="grzo")).begin()
    with pytest.raises(ConfigError, match="macro_f1 needs the same classes in every row"):
        rows = answered.with_name("choices.jsonl")
        rows.write_text('{"question": "was it", "choices": ["good", "bad"], "answer": 0}\n' * 4)
        Session(config(label_words=None, template="{{ question }}", objective="macro_f1", train=rows, eval=None))
