"""Lines of metrics and timing: those that a run writes are read, anything else is no line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zotune.config import TrainConfig
from zotune.logged import is_metrics, lines_of, metrics_of, timing_of
from zotune.train import train
from zotune.watch import Quiet

EVAL = {"loss": 0.5, "accuracy": 0.75, "examples": 4, "low": 0.3, "high": 0.9}


@pytest.mark.parametrize(
    "row",
    [
        {"step": 3, "loss": 0.5, "projected_gradient": -1.5, "lr": 1e-6},
        {"step": 3, "loss": "nan", "projected_gradient": "-inf", "lr": 0},
        {"step": 0, "eval": {}},
        {"step": 0, "eval": EVAL},
        {"step": 0, "eval": {**EVAL, "accuracy": None, "low": None, "high": None, "f1": 0.5, "reward_own": None}},
    ],
)
def test_lines_of_a_run(row: dict[str, Any]) -> None:
    """A step and an evaluation, with numbers that are not finite and with what is not measured."""
    line = json.dumps(row).encode() + b"\n"
    assert [found for _, found in lines_of(line, is_metrics)] == [line]


@pytest.mark.parametrize(
    "line",
    [
        b"[" * 100_000, b"[]", b"3", b"{}", b'{"step": true}', b'{"step": -1}', b'{"step": 1.0}',
        b'{"step": 9999999999}',
        b'{"step": ' + b"9" * 4000 + b"}", b'{"step": 1, "loss": "foo"}', b'{"step": 1, "loss": null}',
        b'{"step": 1, "loss": true}', b'{"step": 1, "loss": NaN}', b'{"step": 1, "loss": 1' + b"0" * 400 + b"}",
        b'{"step": 1, "projected_gradient": {}}', b'{"step": 1, "lr": "x"}', b'{"step": 1, "eval": [1]}',
        b'{"step": 1, "eval": 3}', b'{"step": 1, "eval": {"loss": 1}}', b'{"step": 1, "eval": {"examples": 1}}',
        b'{"step": 1, "eval": {"loss": [1], "examples": 1}}', b'{"step": 1, "eval": {"loss": 1, "examples": "z"}}',
        b'{"step": 1, "eval": {"loss": 1, "examples": 1, "accuracy": "abc"}}',
    ],
)  # fmt: skip
def test_what_no_run_writes(line: bytes) -> None:
    """Another type, another shape, depth and digits: left out, and the lines around it stay."""
    whole = b'{"step": 1}\n'
    assert [found for _, found in lines_of(whole + line + b"\n" + whole + line, is_metrics)] == [whole, whole]


def test_numbers_that_are_not_finite(tmp_path: Path) -> None:
    """They stand as text and are read as numbers; the line keeps its bytes."""
    line = b'{"step": 1, "loss": "nan", "eval": {"loss": "-inf", "examples": 2}}\n'
    (tmp_path / "m").write_bytes(line)
    ((row, found),) = metrics_of(tmp_path / "m")
    assert found == line and math.isnan(row["loss"]) and row["eval"]["loss"] == -math.inf
    assert metrics_of(tmp_path / "none") == [] == metrics_of(tmp_path)


def test_a_real_run(config: Callable[..., TrainConfig]) -> None:
    """Every line that training writes is one."""
    train(config(steps=3, eval_every=1, scope="norms"), Quiet())
    run = config().output_dir
    data = (run / "metrics.jsonl").read_bytes()
    assert b"".join(line for _, line in metrics_of(run / "metrics.jsonl")) == data and data.count(b"\n") == 7
    (row,) = timing_of(run / "timing.jsonl")
    assert row["steps"] == 3 and row["seconds"] > 0 and row["peak_memory_bytes"] > 0


@pytest.mark.parametrize(
    "line",
    [
        '{"steps": 2}',
        '{"steps": 2, "seconds": "nan"}',
        '{"seconds": 1}',
        '{"steps": 1, "seconds": 1, "peak_memory_bytes": []}',
    ],
)
def test_timing_of_another_type(tmp_path: Path, line: str) -> None:
    """No line."""
    (tmp_path / "t").write_text(line + "\n")
    assert timing_of(tmp_path / "t") == []
