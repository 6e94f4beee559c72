"""TrainConfig: what it accepts, what it refuses, and that its YAML is the same config."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from zotune.config import NEVER_FROM_FILE, OPTIONS, TrainConfig
from zotune.errors import ConfigError
from zotune.option import hints
from zotune.resolve import resolve

BASE: dict[str, Any] = {"model": "m", "train": "train.jsonl", "output_dir": "out"}


def test_defaults() -> None:
    """A model, rows and a folder are enough; paths become paths."""
    config = TrainConfig(**BASE)
    assert (config.train, config.output_dir, config.eval) == (Path("train.jsonl"), Path("out"), None)
    assert (config.method, config.steps, config.scope, config.dtype) == ("mezo", 1000, "full", "float32")
    assert config.method_args == {} and config.method_args is not TrainConfig(**BASE).method_args


def test_text_from_a_command_line_is_converted() -> None:
    """Numbers may come as text, words as numbers."""
    config = TrainConfig(**BASE, steps="5", lr="1e-6", label_words=[1, "two"], labels=[0, "x"])  # type: ignore[arg-type]
    assert config.steps == 5 and config.lr == 1e-6
    assert config.label_words == ["1", "two"] and config.labels == [0, "x"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": "many"}, "^steps is 'many': .*integer.* Remedy: .*--steps"),
        ({"steps": -1}, "^steps is -1"),
        ({"steps": 1.5}, "^steps is 1.5"),
        ({"lr": -1e-6}, "^lr is -1e-06"),
        ({"lr": float("nan")}, "^lr is nan"),
        ({"lr": "inf"}, "^lr is 'inf'"),
        ({"eps": 0}, "^eps is 0: .*greater than 0"),
        ({"queries": 0}, "^queries is 0"),
        ({"batch_size": 0}, "^batch_size is 0"),
        ({"micro_batch_size": 0}, "^micro_batch_size is 0"),
        ({"batch_size": 16, "micro_batch_size": 5}, "batch_size 16 is not a multiple of micro_batch_size 5"),
        ({"dtype": "float8"}, "^dtype is 'float8': .*'float32', 'bfloat16'"),
        ({"lanes": True}, "^lanes is True"),
        ({"lr_schedule": "cyclic"}, "^lr_schedule is 'cyclic'"),
        ({"seed": -1}, "^seed is -1"),
        ({"seed": 2**63}, "^seed is 9223372036854775808"),
        ({"label_words": "a"}, "^label_words is 'a'"),
        ({"label_words": [["a"]]}, "^label_words is "),
        ({"method_args": 3}, "^method_args is 3"),
        ({"train": 3}, "^train is 3"),
        ({"output_dir": ""}, "^output_dir is empty. Remedy: name a file or folder with --output-dir.$"),
        ({"label_words": ["a", "b"], "completion_column": "c"}, "cannot be used together"),
        ({"labels": [0, 1]}, "labels needs label_words"),
        ({"sensitive": "m.safetensors"}, "mask of scope sensitive, and scope is 'full'. Remedy: --scope sensitive, or"),
        ({"objective": "bleu"}, "^objective is 'bleu'"),
        ({"reward": ["a:b"], "objective": "f1"}, "reward and objective were given. Remedy: leave one"),
        ({"reward": ["a:b"], "metric": "a:b"}, "reward and metric were given"),
        ({"reward": []}, "reward names no function"),
        ({"reward": ["a:b"], "reward_weights": [1, 2]}, "2 reward_weights for 1 rewards"),
        ({"reward": ["a:b"], "label_words": ["a", "b"]}, "compared, not generated"),
        ({"reward": ["a:b"], "data_format": "messages"}, "rows of shape messages have no prompt to complete"),
        ({"metric": "a:b", "micro_batch_size": 4}, "metric scores a whole batch, which micro_batch_size 4 would split"),
        ({"objective": "macro_f1", "micro_batch_size": 4}, "objective macro_f1 scores a whole batch"),
        ({"reward": ["a:b"], "stop": ["x", ""]}, "stop holds an empty text"),
        ({"reward_timeout": 0}, "^reward_timeout is 0"),
        ({"threads": 0}, "^threads is 0"),
        ({"threads": 100000}, "^threads is 100000: input should be less than or equal to 1024. Remedy: correct it."),
        ({"train": None}, "^train is missing. Remedy: give --train FILE, or --task NAME"),
        ({"device_map": "auto", "offload": "cpu"}, "^device_map spreads a model.* Remedy: leave one of them out"),
        ({"task": "sst2"}, "^train and task cannot be used together.* Remedy: leave --train out"),
        ({"train": None, "task": "sst2", "label_words": ["a", "b"]}, "^label_words and task cannot be used together"),
        ({"shots": 16}, "^shots needs a task. Remedy: give --task NAME, or leave --shots out"),
        ({"calibrated": True}, "^calibrated needs a task"),
        ({"data_format": "csv"}, "^data_format is 'csv': .*'sharegpt'"),
    ],
)
def test_wrong_values_are_named(given: dict[str, Any], message: str) -> None:
    """Each wrong type or value is one ConfigError with the option, the value and the remedy."""
    with pytest.raises(ConfigError, match=message) as caught:
        TrainConfig(**(BASE | given))
    assert "Remedy: " in str(caught.value) and "\n" not in str(caught.value)


def test_edges_are_allowed() -> None:
    """lr 0, no steps, no reuse and the largest seed are legal."""
    config = TrainConfig(**BASE, lr=0, steps=0, reuse_mb=0, seed=2**63 - 1, micro_batch_size=16)
    assert (config.lr, config.steps, config.reuse_mb, config.seed) == (0.0, 0, 0, 2**63 - 1)


def test_it_is_frozen_and_replaceable() -> None:
    """A config does not change; a changed copy is checked again."""
    config = TrainConfig(**BASE)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.steps = 3  # type: ignore[misc]
    assert dataclasses.replace(config, steps=3).steps == 3
    with pytest.raises(ConfigError, match="steps is -3"):
        dataclasses.replace(config, steps=-3)


def test_yaml_is_the_same_config(tmp_path: Path) -> None:
    """What `to_yaml` writes resolves to an equal config: every option, awkward words, exact floats."""
    config = TrainConfig(
        model="org/name",
        train=Path("a b.jsonl"),
        eval=Path("e.jsonl"),
        output_dir=Path("runs/ä"),
        template="{{ text }}\nIt was: ",
        label_words=["Yes", "no", " 1e-6", "null", "3"],
        labels=[1, "1", "true", "x", 0],
        method="lozo",
        method_args={"rank": 2, "normalize": "none", "ratio": 1e-07, "on": True, "word": "1e-7"},
        lr=1e-7,
        eps=0.1 + 0.2,
        scope="regex:.*\\.q_proj & last:2",
        lanes="on",
        weight_decay=0.0,
        lora_targets=["q", "v"],
        threads=2,
    )
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml())
    again = resolve({}, path, lambda method: set(config.method_args))
    assert again == config
    assert again.to_yaml() == config.to_yaml()
    assert again.labels == [1, "1", "true", "x", 0] and type(again.labels[0]) is int


def test_yaml_names_every_option_but_trust(tmp_path: Path) -> None:
    """A run's config is complete, in the order of the class, and never says that code may be trusted."""
    text = TrainConfig(**BASE, trust_remote_code=True).to_yaml()
    names = [line.split(":")[0] for line in text.splitlines() if not line.startswith((" ", "-"))]
    assert names == [name for name in OPTIONS if name not in NEVER_FROM_FILE]


def test_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files and a local model get absolute paths; a hub id stays."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").mkdir()
    config = TrainConfig(**BASE, eval=Path("e.jsonl")).absolute()
    assert config.model == str(tmp_path / "m")
    assert config.train == tmp_path / "train.jsonl" and config.eval == tmp_path / "e.jsonl"
    assert config.output_dir == tmp_path / "out"
    other = TrainConfig(**(BASE | {"model": "org/name"})).absolute()
    assert other.model == "org/name" and other.eval is None
    assert config.absolute() == config


def test_import_is_light() -> None:
    """Importing the options loads neither torch nor pydantic nor PyYAML."""
    script = (
        "import sys, zotune.config\n"
        "assert not {'torch', 'transformers', 'pydantic', 'yaml', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_portable_names_no_folder(tmp_path: Path) -> None:
    """Files and model folders by their names alone; a hub id and a task's name stay as they are."""
    (tmp_path / "model").mkdir()
    (tmp_path / "t.jsonl").write_text("")
    here = TrainConfig(
        model=str(tmp_path / "model"), train=tmp_path / "t.jsonl", output_dir=tmp_path / "out"
    ).portable()
    assert (here["model"], here["train"], here["eval"]) == ("model", "t.jsonl", None)
    assert str(tmp_path) not in str(here) and not {"output_dir", "trust_remote_code"} & set(here)
    hub = TrainConfig(model="org/name", task="sst2", output_dir=tmp_path).portable()
    assert (hub["model"], hub["task"]) == ("org/name", "sst2")


@pytest.mark.parametrize("name", OPTIONS)
def test_numbers_have_an_upper_limit(config: Callable[..., TrainConfig], name: str) -> None:
    """No number of a config makes a loop, an allocation or an overflow without end: it is refused in a sentence."""
    hint = hints(TrainConfig)[name]
    kinds = {hint.__origin__, *get_args(hint.__origin__)}
    if kinds & {int, float}:
        most = hint.__metadata__[0].le
        assert most is not None and most < 2**63
        for value in (10**24, 1e300) if float in kinds else (10**24, 10**400):
            with pytest.raises(ConfigError, match=f"^{name} is .* less than or equal to .*Remedy"):
                config(**{name: value})
