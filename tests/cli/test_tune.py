"""`zotune tune` on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from zotune.resolve import read_file

FOUND = {
    "eps": 1e-3, "lr": 2e-7, "largest_stable_lr": 8e-7, "forwards": 128, "times": 2.0,
    "preset": {"mode": "full", "lr": 1e-6, "eps": 1e-3},
    "eps_curve": [{"eps": 1e-3, "slope": 1.0, "signal_to_noise": 9.0}],
    "lr_curve": [{"lr": 1e-7, "change": -0.1}, {"lr": 1e-6, "change": 0.4}],
}  # fmt: skip


def test_result_is_drawn_and_written(cli: Any, fakes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text plot for people, JSON for programs, and the values in the file that --write names."""
    seen: list[Any] = []
    monkeypatch.setattr("zotune.tune.tune", lambda *given: seen.append(given) or FOUND)
    file = tmp_path / "run.yaml"
    assert cli("init", file, "--model", "m", "--train", "t.jsonl").code == 0
    outcome = cli("tune", "--config", file, "--write", file, "--directions", "3")
    assert outcome.code == 0, outcome.stderr
    assert seen[0][0].model == "m" and seen[0][2] == 3
    assert " 1.0e-07 |----" in outcome.stdout and " 1.0e-06 |++++" in outcome.stdout
    assert "lr: 2e-07" in outcome.stdout and "128 forwards" in outcome.stdout
    assert "times 2: what the method takes where MeZO takes 1" in outcome.stdout
    assert "presets for full: lr 1e-06, eps 0.001" in outcome.stdout
    values = read_file(file)[0]
    assert (values["lr"], values["eps"], values["tuned"]) == (2e-7, 1e-3, "2e-07 for mezo, full")
    as_json = json.loads(cli("tune", "--model", "m", "--train", "t.jsonl", "--json").stdout)
    assert as_json == FOUND


def test_a_file_that_cannot_be_written_is_said_first(cli: Any, fakes: Any, tmp_path: Path) -> None:
    """No forward pass before the config of --write was read."""
    outcome = cli("tune", "--model", "m", "--train", "t", "--write", tmp_path / "none.yaml")
    assert outcome.code == 2 and "none.yaml cannot be read" in outcome.stderr


def test_trials(cli: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`zotune tune --trials` passes its flags on, writes the values, and prints the trials."""
    calls: list[tuple[Any, ...]] = []
    result = {"lr": 1e-3, "eps": 2e-3, "loss": 0.5, "trials": [{"lr": 1e-3, "eps": 2e-3, "loss": 0.5}]}
    monkeypatch.setattr("zotune.search.search", lambda *given: calls.append(given) or result)
    file = tmp_path / "run.yaml"
    file.write_text("model: m\ntrain: t.jsonl\noutput_dir: out\n")
    words = ["tune", "--config", file, "--write", file, "--trials", "7", "--trial-steps", "5"]
    outcome = cli(*words, "--study", tmp_path / "s.db", "--json")
    assert outcome.code == 0 and json.loads(outcome.stdout)["loss"] == 0.5
    assert calls[0][2:] == (7, 5, tmp_path / "s.db") and "lr: 0.001" in file.read_text()
    assert "1.0e-03" in cli(*words).stdout
