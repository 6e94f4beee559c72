"""`zotune export`: one form of a run's weights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest


def test_export_takes_one_form(cli: Any, run_folder: Path, tmp_path: Path) -> None:
    """Two forms at once are refused."""
    outcome = cli("export", run_folder, "--to", tmp_path / "out", "--merge", "--delta")
    assert outcome.code == 2 and "--merge and --delta were given. Remedy: give one of them." in outcome.stderr


def test_a_run_becomes_a_folder(cli: Any, last: Any, run: Path, tmp_path: Path) -> None:
    """Without a form a whole model; the differences alone, with --delta; a folder with content only with --force."""
    found = last(cli("export", run, "--to", tmp_path / "out", "--json"))
    assert (found["form"], found["steps"]) == ("merge", 7) and (tmp_path / "out" / "model.safetensors").exists()
    again = cli("export", run, "--to", tmp_path / "out", "--delta")
    assert again.code == 4 and "is not empty" in again.stderr
    outcome = cli("export", run, "--to", tmp_path / "out", "--delta", "--force")
    assert (outcome.code, outcome.stderr) == (0, "") and "delta" in outcome.stdout
    assert not (tmp_path / "out" / "model.safetensors").exists() and len(list((tmp_path / "out").iterdir())) > 0


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["export", "TO", "--to", "TO"], 4, "is not a folder"),
        (["export", "RUN", "--to", "TO", "--adapter"], 2, "makes no adapter. Remedy: --merge or --delta"),
        (["export", "RUN"], 2, "Missing option '--to'"),
    ],
)
def test_what_cannot_be_exported(refused: Any, words: list[str], code: int, said: str) -> None:
    """No run, a form that the run has not, nowhere to go."""
    ended, line = refused(words)
    assert ended == code and re.search(said, line), line
