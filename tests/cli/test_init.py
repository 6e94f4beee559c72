"""`zotune init`: a config file to begin with."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any


def test_init_then_train_reads_it(cli: Any, fakes: Any, tmp_path: Path) -> None:
    """The file that init writes is one that train takes."""
    file = tmp_path / "run.yaml"
    flags = ["--model", "m", "--train", "t.jsonl", "--label-words", "No,Yes", "--output-dir", tmp_path / "out"]
    assert json.loads(cli("init", file, *flags, "--json").stdout)["to_fill_in"] == []
    assert cli("train", "--config", file).code == 0
    (config, _), _ = next(call[1:] for call in fakes.calls if call[0] == "train")
    assert config.label_words == ["No", "Yes"] and config.output_dir == tmp_path / "out"
    again = cli("init", file, *flags)
    assert again.code == 2 and "is there already" in again.stderr


def test_what_is_left_to_fill_in(cli: Any, tmp_path: Path) -> None:
    """Without options the file names what it needs; --force replaces it, and words go to stderr alone."""
    file = tmp_path / "run.yaml"
    outcome = cli("init", file)
    assert (outcome.code, outcome.stderr) == (0, "") and "['model', 'train']" in outcome.stdout
    assert json.loads(cli("init", file, "--model", "m", "--force", "--json").stdout)["to_fill_in"] == ["train"]
    assert "\nmodel: m\n" in file.read_text()


def test_what_cannot_be_a_config(cli: Any, tmp_path: Path) -> None:
    """A folder that is not there, and an option that no file may set: exit code 2, and nothing is written."""
    for words, said in (
        (["no/a.yaml"], "a.yaml cannot be written: .* Remedy: choose another file"),
        (["a.yaml", "--trust-remote-code"], "No such option: --trust-remote-code"),
    ):
        outcome = cli("init", tmp_path / words[0], *words[1:], "--json")
        assert outcome.code == 2 and re.search(said, json.loads(outcome.stdout)["error"]), outcome
    assert list(tmp_path.iterdir()) == []
