"""What `zotune train`, `resume` and `pool` end with."""

from __future__ import annotations

from typing import Any

import pytest
from tests.cli.conftest import FINISHED

from zotune.cli.frame import Session
from zotune.cli.summary import show_run
from zotune.watch import Console


def said(capsys: pytest.CaptureFixture[str], **found: Any) -> list[str]:
    session = Session()
    session.watch = Console()
    show_run(session, {**FINISHED, **found})
    return capsys.readouterr().err.splitlines()


def test_the_least(capsys: pytest.CaptureFixture[str]) -> None:
    """Without held-out rows: steps, journal, hash, and commands that can be pasted."""
    assert said(capsys) == [
        "steps    3 in 0s of training, 6 forwards",
        "journal  800 B: with the base model it is the run",
        f"weights  sha256 {'ab' * 32}",
        "next     zotune report 'runs/a b'",
        "         zotune export 'runs/a b' --to FOLDER",
    ]


def test_scores_and_memory(capsys: pytest.CaptureFixture[str]) -> None:
    """Shares in per cent with the interval after, the loss, and the memory beside what was foreseen."""
    lines = said(
        capsys, accuracy_before=0.5, accuracy_after=0.75, low_after=0.6, high_after=0.9, loss_before=1.0,
        loss_after=0.5, eval_examples=8, peak_memory_bytes=2_000_000_000, foreseen_memory_bytes=1_900_000_000,
        steps=1500, seconds=200.0, message_bytes=144,
    )  # fmt: skip
    assert lines[:5] == [
        "accuracy  50.0 % before, 75.0 % after (95 % interval 60.0 to 90.0), 8 examples",
        "loss      1.0000 before, 0.5000 after",
        "steps     1,500 in 3m20s of training, 6 forwards",
        "memory    2.0 GB at most, 1.9 GB foreseen (-5.0%)",
        "messages  144 bytes a step from each process",
    ]


def test_a_run_that_was_over_took_no_memory(capsys: pytest.CaptureFixture[str]) -> None:
    """Where no step was made the memory was not that of a step: nothing is compared."""
    lines = said(capsys, seconds=0.0, peak_memory_bytes=10**9, foreseen_memory_bytes=2 * 10**9)
    assert "memory   1.0 GB at most" in lines


def test_numbers_of_their_own_scale(capsys: pytest.CaptureFixture[str]) -> None:
    """A reward is no share of 1."""
    lines = said(capsys, reward_before=-1.5, reward_after=2.25, low_after=2.0, high_after=2.5, eval_examples=4)
    assert lines[0] == "reward   -1.5000 before, 2.2500 after (95 % interval 2.0000 to 2.5000), 4 examples"
