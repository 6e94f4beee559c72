"""From files and flags to a config: precedence, the method's arguments, errors with the nearest key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from zotune.config import OPTIONS
from zotune.errors import ConfigError, DataError
from zotune.resolve import ALIASES, FILES, check_files, nearest, read_file, resolve

BASE: dict[str, Any] = {"model": "m", "train": "train.jsonl", "output_dir": "out"}
ACCEPTED = {"mezo": {"law"}, "lozo": {"rank", "interval", "law"}}


def accepts(method: str) -> set[str]:
    """Stands for the method table."""
    return ACCEPTED[method]


def write(path: Path, text: str) -> Path:
    """A YAML file beside the run."""
    path.write_text(text)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A config as a user writes it."""
    return write(
        tmp_path / "run.yaml",
        "model: m\ntrain: a.jsonl\noutput_dir: out\nmethod: lozo\nlr: 1e-7\nlabel_words: [Yes, No]\n"
        "lanes: on\nrank: 4\nmethod_args:\n  interval: 50\n",
    )


def test_file_alone(file: Path) -> None:
    """Flat and nested arguments of the method meet in method_args; `Yes` and `on` stay words."""
    config = resolve({}, file, accepts)
    assert config.method_args == {"rank": 4, "interval": 50}
    assert (config.lr, config.label_words, config.lanes) == (1e-7, ["Yes", "No"], "on")


def test_flags_win_over_the_file(file: Path) -> None:
    """Each flag replaces its key, also below method_args; what is not flagged stays."""
    flags = {"lr": 0.5, "train": "b.jsonl", "rank": 8, "method_args": {"law": "gaussian"}}
    config = resolve(flags, file, accepts)
    assert (config.lr, config.train, config.lanes) == (0.5, Path("b.jsonl"), "on")
    assert config.method_args == {"rank": 8, "interval": 50, "law": "gaussian"}
    assert flags["method_args"] == {"law": "gaussian"}


def test_nested_flag_wins_over_a_flat_key_of_the_file(file: Path) -> None:
    """`--method-arg rank=9` replaces `rank: 4` of the file."""
    assert resolve({"method_args": {"rank": 9}}, file, accepts).method_args["rank"] == 9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "model: m\nbatchsize: 4\n",
            r"run.yaml line 2: unknown option 'batchsize'. The nearest is 'batch_size'",
        ),
        ("model: m\nlearning-rate: 4\n", r"line 2: unknown option 'learning-rate'. The nearest is 'lr'"),
        ("model: m\nLearning_Rate: 4\n", r"line 2: unknown option 'Learning_Rate'. The nearest is 'lr'"),
        ("model: m\nepsilon: 4\n", r"unknown option 'epsilon'. The nearest is 'eps'"),
        ("model: m\nbatch: 4\n", r"unknown option 'batch'. The nearest is 'batch_size'"),
        ("model: m\nmodel_name_or_path: x\n", r"The nearest is 'model'"),
        (
            "model: m\nnum_train_epochs: 4\n",
            r"Training is counted in 'steps': an epoch is as many as there are rows, di",
        ),
        (
            "rnak: 2\nmethod: lozo\n",
            r"line 1: unknown option 'rnak'. The nearest is 'rank'.*takes interval, law, rank",
        ),
        ("rank: 2\n", r"line 1: unknown option 'rank'.* mezo takes law"),
        ("method_args: {rnak: 2}\nmethod: lozo\n", r"unknown option 'rnak'. The nearest is 'rank'"),
        ("method_args: {lr: 2}\n", r"lr is an option of its own.*take it out of method_args and give --lr"),
        ("method_args: [2]\n", r"run.yaml line 1: method_args is \[2\]"),
        ("steps: many\n", r"steps is 'many'"),
        ("train: null\n", r"train is missing. Remedy: give --train, or train: in the config"),
        (
            "trust_remote_code: true\n",
            r"line 1: trust_remote_code cannot be set by a file.*--trust-remote-code",
        ),
        ("- a\n", r"run.yaml does not hold"),
    ],
)
def test_errors_name_the_key(tmp_path: Path, text: str, message: str) -> None:
    """What is wrong is named with file, line and the nearest key or the accepted ones."""
    path = write(tmp_path / "run.yaml", text)
    base = {} if "train" in text else BASE
    flags = base | ({"model": "m", "output_dir": "o"} if not base else {})
    with pytest.raises(ConfigError, match=message) as caught:
        resolve(flags, path, accepts)
    assert "Remedy: " in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"rank": 2}, "unknown option 'rank'.*mezo takes law"),
        ({"method_args": {"lw": 1}}, "unknown option 'lw'. The nearest is 'law'"),
        ({"model": None}, "model is missing.*--model"),
    ],
)
def test_errors_of_flags(flags: dict[str, Any], message: str) -> None:
    """Flags are checked the same way."""
    with pytest.raises(ConfigError, match=message):
        resolve(BASE | flags, None, accepts)


def test_what_others_call_an_option_is_one() -> None:
    """Every alias leads to an option, and none of them is one itself."""
    assert set(ALIASES.values()) <= set(OPTIONS) and not set(ALIASES) & set(OPTIONS)
    assert nearest("learning_rate", {"rank"}) == ""  # not where there is no such option


def test_required_options_are_asked_for() -> None:
    """Nothing given: the first missing option is named."""
    with pytest.raises(ConfigError, match="model is missing. Remedy: give --model"):
        resolve({}, None, accepts)


def test_trust_by_flag_only(tmp_path: Path) -> None:
    """The user's flag counts; `false` in a file is harmless."""
    path = write(tmp_path / "run.yaml", "trust_remote_code: false\n")
    assert resolve(BASE | {"trust_remote_code": True}, path, accepts).trust_remote_code
    assert not resolve(BASE, path, accepts).trust_remote_code


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """A missing file, a folder and a file that is no config are named."""
    with pytest.raises(ConfigError, match="none.yaml cannot be read: No such file"):
        read_file(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_file(tmp_path)
    (tmp_path / "big.yaml").write_bytes(b"a: 1\n" * 300_000)
    with pytest.raises(ConfigError, match="larger than 1 MiB"):
        read_file(tmp_path / "big.yaml")


def test_the_real_method_table() -> None:
    """Without a stand-in, the method table decides: an unknown method is named with the nearest."""
    with pytest.raises(ConfigError, match=r"unknown method 'mezzo'. The nearest is 'mezo'. Remedy: use one of "):
        resolve(BASE | {"method": "mezzo"})
    assert resolve(BASE).method == "mezo"
    with pytest.raises(ConfigError, match="unknown option 'no_such_argument'"):
        resolve(BASE | {"no_such_argument": 1})


def test_files_of_a_run_that_have_moved(tmp_path: Path) -> None:
    """Each is named with its key in the run's config; names of the hub and of built-in tasks are no files."""
    (tmp_path / "rows.jsonl").touch()
    there = str(tmp_path / "rows.jsonl")
    check_files(resolve({"model": "org/name", "train": there, "output_dir": tmp_path}))
    check_files(resolve({"model": "org/name", "task": "sst2", "output_dir": tmp_path}))
    gone = str(tmp_path / "gone")
    for name in ("model", "train", "eval"):
        config = resolve({"model": "org/name", "train": there, "output_dir": tmp_path, name: gone})
        with pytest.raises(
            DataError, match=f"gone does not exist any more. Remedy: correct `{name}:` in .*config.yaml.$"
        ):
            check_files(config)
        check_files(config, [other for other in FILES if other != name])
