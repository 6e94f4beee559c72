"""`zotune eval RUN` and `zotune eval --model DIR`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
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


def test_zero_shot_on_the_hub(cli: Any, fakes: Any) -> None:
    """Rows that are evaluated stand for the training rows too: those of the same split."""
    assert cli("eval", "--model", "org/name", "--eval", "org/rows", "--label-words", "bad,good").code == 0
    config = next(arguments[0] for name, arguments, _ in fakes.calls if name == "evaluate_run")
    assert config.train == config.eval == Path("org/rows:validation")


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


TABLE = {"steps": 3, "tasks": [
    {"task": "sst2", "accuracy": 0.75, "low": 0.4, "high": 0.9, "loss": 0.5, "examples": 1000},
    {"task": "rte", "error": "why"},
]}  # fmt: skip


def test_several_tasks(cli: Any, fakes: Any, run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run or a model, the options of the tasks apart from those of the model; one table."""
    calls: list[Any] = []
    stand_in = ModuleType("zotune.evaluate_tasks")
    stand_in.evaluate_tasks = lambda *given: calls.append(given) or TABLE  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "zotune.evaluate_tasks", stand_in)
    flags = ["--tasks", "sst2, rte", "--data-dir", "rows", "--eval-rows", "50"]
    outcome = cli("eval", run_folder, *flags, "--eval-batch-size", "4")
    assert outcome.code == 0, outcome.stderr
    config, run, names, given, _ = calls[0]
    assert run == run_folder and names == ["sst2", "rte"] and given == {"data_dir": "rows", "eval_rows": "50"}
    assert config.eval_batch_size == 4 and config.output_dir == run_folder
    assert "sst2  75.0 % (40.0 to 90.0)  0.500  1,000" in outcome.stdout and "rte   cannot run: why" in outcome.stdout
    assert json.loads(cli("eval", "--model", "m", "--tasks", "sst2", "--json").stdout) == TABLE
    assert calls[1][1] is None and calls[1][0].model == "m"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "sst2"], "model is missing. Remedy: name a run folder, or give --model"),
        (["RUN", "--model", "m", "--tasks", "sst2"], "a run and --model were given"),
        (["--model", "m", "--tasks", "sst2", "--eval", "e"], "tasks and eval were given"),
        (["--model", "m", "--tasks", "sst2", "--label-words", "a,b"], "Remedy: leave --label-words out"),
    ],
)
def test_errors_of_tasks(cli: Any, fakes: Any, run_folder: Path, arguments: list[str], message: str) -> None:
    """What is missing or contradicts itself is named."""
    outcome = cli("eval", *(run_folder if word == "RUN" else word for word in arguments))
    assert outcome.code == 2 and message in outcome.stderr
