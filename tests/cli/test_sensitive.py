"""`zotune sensitive`: the mask of a run's most sensitive weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zotune.cli import main
from zotune.config import TrainConfig


def test_the_command(config: Callable[..., TrainConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`zotune sensitive` writes a mask that `zotune train --scope sensitive` takes."""
    settings, to = config(), tmp_path / "mask.safetensors"
    words = ["--model", settings.model, "--train", str(settings.train), "--threads", "1"]
    with pytest.raises(SystemExit) as ended:
        main(["sensitive", *words, "--share", "0.01", "--to", str(to), "--json"])
    assert not ended.value.code
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["examples"] == 22 and found["bytes"] == to.stat().st_size and found["weights"] > 40
    scope = ["--scope", "sensitive", "--sensitive", str(to), "--steps", "2", "--output-dir", str(tmp_path / "r")]
    with pytest.raises(SystemExit) as ended:
        main(["train", *words, *scope, "--json"])
    assert not ended.value.code
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["steps"] == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--share", "1.5", "--to", "mask"], "share must be between 0 and 1, got 1.5. Remedy: 0.001"),
        ([], "Missing option '--to'"),
        (["--to", "mask", "--lr", "1"], "No such option: --lr"),
        (["--to", "mask", "--dtype", "float8"], "dtype is 'float8'"),
    ],
)
def test_errors(cli: Any, config: Callable[..., TrainConfig], tmp_path: Path, words: list[str], said: str) -> None:
    """A share that is none, no file to write, an option of training, a wrong value: exit code 2 and no file."""
    words = [str(tmp_path / word) if word == "mask" else word for word in words]
    outcome = cli("sensitive", "--model", config().model, "--train", config().train, *words, "--json")
    assert outcome.code == 2 and said in json.loads(outcome.stdout)["error"] and list(tmp_path.iterdir()) == []
