"""`zotune plan`: what a run will take, in words and as JSON, and beside what a finished one took."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from tests.machines import MACHINE

from zotune.watch import size


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that was measured before, with a known room."""
    monkeypatch.setattr("zotune.plan.calibrate", lambda *_: MACHINE)
    monkeypatch.setattr("zotune.plan.free_memory_bytes", lambda device: 123_000_000_000)


def test_words_and_json_agree(cli: Any, last: Any, run: Path) -> None:
    """The figures of --json in words: parameters, forwards, terms of memory with what they are, and what fits."""
    found = last(cli("plan", "--config", run / "config.yaml", "--json"))
    outcome = cli("plan", "--config", run / "config.yaml")
    said = dict(line.strip().split(maxsplit=1) for line in outcome.stdout.splitlines())
    assert (outcome.code, outcome.stderr) == (0, "") and "measured" not in said
    assert said["model"].endswith(f"({found['parameters']:,} parameters, {found['trained']:,} trained)")
    assert said["step"].startswith(f"2 forwards, about {found['seconds_per_step']:.2g} s")
    assert said["weights"].endswith("weights") and said["activations"].endswith("one forward")
    assert "reused" not in said and found["memory"]["reused"] == 0  # what takes nothing is not said
    assert said["memory"].endswith("at most, fits into the 123.0 GB that are free")
    assert said["journal"] == size(found["disk"]["journal"])
    assert "with metrics and snapshots, fits into" in said["disk"]


def test_a_finished_run_is_measured(cli: Any, last: Any, run: Path) -> None:
    """What was predicted beside what it took: the journal exactly."""
    found = last(cli("plan", run, "--json"))
    count = (run / "journal.zoj").stat().st_size
    assert found["measured"]["journal_bytes"] == found["disk"]["journal"] == count
    assert f"journal +0.0% of {size(count)}" in cli("plan", run).stdout


def test_what_does_not_fit_is_said(cli: Any, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In capitals; where nobody knows how much there is, that is said instead."""
    for free, said in ((1000, "DOES NOT FIT into the 1 kB that are free"), (None, "what is free is not known")):
        monkeypatch.setattr("zotune.plan.free_memory_bytes", lambda device, free=free: free)
        outcome = cli("plan", run)
        assert outcome.code == 0 and said in outcome.stdout


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["plan", "TO"], 4, "is not a folder"),
        (["plan", "RUN", "--steps", "many"], 2, "steps is 'many'"),
        (["plan", "--model", "m"], 2, "train is missing|output_dir"),
    ],
)
def test_errors(refused: Any, words: list[str], code: int, said: str) -> None:
    """Those of `zotune train`, and a folder that is no run."""
    ended, line = refused(words)
    assert ended == code and re.search(said, line), line
