"""`zotune branch`: another run from the first steps of one, with other options."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from zotune.cli.branch import changed
from zotune.errors import ConfigError
from zotune.journal import read
from zotune.resolve import read_file


def test_the_first_steps_are_shared(cli: Any, last: Any, run: Path, tmp_path: Path) -> None:
    """To the byte, up to the step that was asked for; without a step all of them, with other steps to come."""
    found = last(cli("branch", run, "--step", 4, "--set", "lr=0.5", "--to", tmp_path / "b", "--json"))
    assert (found["shared_steps"], found["changed"]) == (4, {"lr": 0.5})
    records, shared = read(run / "journal.zoj")[1], read(tmp_path / "b" / "journal.zoj")[1]
    assert shared == records[: len(shared)] and shared[-1].step == 3
    assert read_file(tmp_path / "b" / "config.yaml")[0]["lr"] == 0.5
    outcome = cli("branch", run, "--set", "steps=9", "--to", tmp_path / "c")
    assert (outcome.code, outcome.stderr) == (0, "") and re.search("^shared_steps +7$", outcome.stdout, re.MULTILINE)


def test_options_are_written_as_flags_are() -> None:
    """Hyphens, spaces around the name, values with an equals sign, lists at commas; the last of two counts."""
    assert changed([]) == {}
    assert changed(["lr-schedule=linear", " lr =1e-7", "lr=2e-7", "template={{ a == b }}"]) == {
        "lr_schedule": "linear", "lr": "2e-7", "template": "{{ a == b }}"
    }  # fmt: skip
    assert changed(["label-words=No, Yes", "eval="]) == {"label_words": ["No", "Yes"], "eval": ""}
    for text in ("lr", "=1", " =1"):
        with pytest.raises(ConfigError, match=f"--set is '{text}'. Remedy: write name=value, such as --set lr=1e-7."):
            changed([text])
    with pytest.raises(ConfigError, match="method_args, rank cannot be changed by a branch: .* Remedy: start another"):
        changed(["rank=2", "method_args=x", "lr=1"])


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["branch", "RUN", "--set", "lr", "--to", "TO"], 2, "write name=value"),
        (["branch", "RUN", "--set", "seed=2", "--to", "TO"], 2, "seed cannot be changed by a branch"),
        (["branch", "RUN", "--set", "rank=2", "--to", "TO"], 2, "rank cannot be changed by a branch"),
        (["branch", "RUN", "--set", "foo=3", "--to", "TO"], 2, "unknown option 'foo'. Remedy: correct its name; the"),
        (["branch", "RUN", "--set", "step=9", "--to", "TO"], 2, "unknown option 'step'. The nearest is 'steps'. Rem"),
        (["branch", "RUN", "--set", "lr=fast", "--to", "TO"], 2, "lr is 'fast'"),
        (["branch", "RUN", "--step", "8", "--to", "TO"], 4, "has 7 steps, so none can be step 8"),
    ],
)
def test_errors(refused: Any, words: list[str], code: int, said: str) -> None:
    """No value, what decided the shared steps, no option, a value that is none, a step that the run has not."""
    ended, line = refused(words)
    assert ended == code and re.search(said, line), line
