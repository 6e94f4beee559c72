"""`zotune diff`: where two runs part, in words and as JSON."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest


def test_words(cli: Any, run: Path, tmp_path: Path) -> None:
    """Without --json stdout is empty and stderr says it in words."""
    outcome = cli("branch", run, "--set", "steps=9", "--to", tmp_path / "b")
    assert (outcome.code, outcome.stderr) == (0, "") and "shared_steps" in outcome.stdout
    outcome = cli("diff", run, tmp_path / "b")
    assert outcome.stderr == "" and "all 7 steps are the same" in outcome.stdout
    assert "config steps: 7 and 9" in outcome.stdout and "header branch: None and" in outcome.stdout
    assert cli("undo", run, 1).code == 0
    outcome = cli("diff", run, tmp_path / "b")
    assert (
        "the runs differ from step 6 on (6 and 7 steps)" in outcome.stdout and "a: has no such step" in outcome.stdout
    )


def test_two_runs_as_json(cli: Any, last: Any, run: Path, tmp_path: Path) -> None:
    """A run and its copy are the same; a branch that went on at another rate parts where it began, hashes later."""
    assert cli("cp", run, tmp_path / "copy").code == 0
    same = last(cli("diff", run, tmp_path / "copy", "--json"))
    assert same == {
        "same_steps": True, "first_step": None, "a": None, "b": None, "steps": [7, 7], "first_hash": None,
        "config": {}, "header": {},
    }  # fmt: skip
    assert cli("branch", run, "--step", 4, "--set", "lr=0.5", "--to", tmp_path / "b").code == 0
    assert cli("resume", tmp_path / "b").code == 0
    found = last(cli("diff", run, tmp_path / "b", "--json"))
    assert (found["first_step"], found["first_hash"], found["config"]) == (4, 6, {"lr": [0.01, 0.5]})
    assert "the weights differ after 6 steps" in cli("diff", run, tmp_path / "b").stdout


def test_long_values_are_cut(cli: Any, run: Path, tmp_path: Path) -> None:
    """In words a value takes at most 100 characters; as JSON it is whole."""
    words = cli("branch", run, "--set", f"template={{{{ text }}}}{'x' * 200}", "--to", tmp_path / "b")
    assert words.code == 0, words.stderr
    (line,) = [line for line in cli("diff", run, tmp_path / "b").stdout.splitlines() if line.startswith("config templ")]
    assert line == f"config template: {{{{ text }}}} it was and {{{{ text }}}}{'x' * 87}..."


@pytest.mark.parametrize(
    ("words", "said"), [(["diff", "RUN", "TO"], "is not a folder"), (["diff", "TO", "RUN"], "is not a folder")]
)
def test_what_is_no_run(refused: Any, words: list[str], said: str) -> None:
    """Either of the two."""
    ended, line = refused(words)
    assert ended == 4 and re.search(said, line), line
