"""`zotune eval RUN` and `zotune eval --model DIR`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

RESULT = {"accuracy": 0.75, "loss": 0.5, "examples": 8, "low": 0.4, "high": 0.9}


def test_eval_of_a_run(cli: Any, fakes: Any, run_folder: Path, tmp_path: Path) -> None:
    """The run's config comes with the given options on top."""
    fakes.results["evaluate_run"] = RESULT
    flags = ["--eval", tmp_path / "e.jsonl", "--eval-batch-size", "4", "--trust-remote-code"]
    outcome = cli("eval", run_folder, *flags, "--json")
    assert outcome.code == 0 and json.loads(outcome.stdout) == RESULT
    config, run, _ = next(arguments for name, arguments, _ in fakes.calls if name == "evaluate_run")
    assert run == run_folder and config.trust_remote_code
    assert (config.eval, config.eval_batch_size, config.template) == (
        tmp_path / "e.jsonl",
        4,
        "{{ text }} It was",
    )
    assert config.label_words == ["No", "Yes"]


def test_zero_shot(cli: Any, fakes: Any, tmp_path: Path) -> None:
    """With --model no run is needed."""
    outcome = cli("eval", "--model", "org/name", "--eval", tmp_path / "e.jsonl", "--label-words", "bad,good")
    assert outcome.code == 0
    config, run, _ = next(arguments for name, arguments, _ in fakes.calls if name == "evaluate_run")
    assert run is None
    assert (config.model, config.eval, config.label_words) == (
        "org/name",
        tmp_path / "e.jsonl",
        ["bad", "good"],
    )


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "model is missing. Remedy: name a run folder, or give --model and --eval"),
        (["--model", "m"], 2, "eval is missing"),
        (["RUN", "--model", "m"], 2, "a run and --model were given"),
        (["RUN"], 2, "has no evaluation rows. Remedy: give --eval FILE"),
        (["nowhere", "--eval", "e"], 4, "nowhere is not a folder"),
    ],
)
def test_errors(cli: Any, fakes: Any, run_folder: Path, arguments: list[str], code: int, message: str) -> None:
    """What is missing or contradicts itself is named."""
    outcome = cli("eval", *(run_folder if word == "RUN" else word for word in arguments))
    assert outcome.code == code and message in outcome.stderr
    assert "evaluate_run" not in [call[0] for call in fakes.calls]
