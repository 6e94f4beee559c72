"""`zotune checkout`: the weights after any step."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tests.models import same_bits


def test_the_base_and_the_end(cli: Any, last: Any, run: Path, tmp_path: Path, tiny: Any) -> None:
    """After 0 steps the base model's own weights, after 7 those that the run recorded; without --json in words."""
    found = last(cli("checkout", run, "--step", 0, "--to", tmp_path / "0", "--json"))
    assert (found["steps"], found["kind"], found["to"]) == (0, "model", str(tmp_path / "0"))
    base, start = load_file(tiny("llama") / "model.safetensors"), load_file(tmp_path / "0" / "model.safetensors")
    assert same_bits(base, start)
    outcome = cli("checkout", run, "--step", 7, "--to", tmp_path / "7")
    assert (outcome.code, outcome.stderr) == (0, "")
    verified = last(cli("verify", run, "--json"))["weights_sha256"]
    assert re.search(f"^weights_sha256 +{verified}$", outcome.stdout, re.MULTILINE)
    assert not same_bits(base, load_file(tmp_path / "7" / "model.safetensors"))


def test_a_folder_with_content_is_replaced_when_forced(cli: Any, run: Path, tmp_path: Path) -> None:
    """And then holds nothing of what was there."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes").write_text("x")
    assert cli("checkout", run, "--step", 1, "--to", tmp_path / "out").code == 4
    assert cli("checkout", run, "--step", 1, "--to", tmp_path / "out", "--force").code == 0
    assert not (tmp_path / "out" / "notes").exists()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["checkout", "RUN", "--step", "9", "--to", "TO"], 4, "has 7 steps"),
        (["checkout", "RUN", "--step", "1", "--to", "RUN"], 4, "is not empty.*--force"),
        (["checkout", "RUN", "--to", "TO"], 2, "Missing option '--step'"),
    ],
)
def test_errors(refused: Any, words: list[str], code: int, said: str) -> None:
    """A step that the run has not, the run itself as the folder, no step."""
    ended, line = refused(words)
    assert ended == code and re.search(said, line), line
