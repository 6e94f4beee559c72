"""What a run says of its steps and evaluations: each line's numbers are those of the journal."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.courses import Noting

from zotune.config import TrainConfig
from zotune.journal import read
from zotune.metrics import before_and_after, coef_of, is_due, live
from zotune.rebuild import steps_of
from zotune.records import StepRecord
from zotune.run import RunFolder, RunPaths
from zotune.train import train
from zotune.watch import Quiet


class Rows:
    """A folder that holds rows."""

    def __init__(self, *rows: dict[str, Any]) -> None:
        self.rows = list(rows)

    def metrics(self) -> list[dict[str, Any]]:
        return self.rows


def test_a_line_of_a_step_is_that_of_its_record(config: Callable[..., TrainConfig]) -> None:
    """Steps count from 1, the loss is the mean of both sides, the slope their difference over 2 eps."""
    settings = config(lr_schedule="linear", eval=None, eps=1e-2)
    train(settings, Quiet())
    paths = RunPaths(settings.output_dir)
    rows = [row for row in paths.logged() if "loss" in row]
    records = steps_of(read(paths.journal)[1])
    assert len(rows) == len(records) == 7 and records[6].lrs != records[0].lrs
    for number, (row, record) in enumerate(zip(rows, records, strict=True), 1):
        up, down = record.losses
        assert row == {
            "step": number,
            "loss": pytest.approx((up + down) / 2, rel=1e-12),
            "projected_gradient": pytest.approx((up - down) / 2e-2, rel=1e-12),
            "lr": record.lrs[0],
        }
    assert paths.logged()[0] == {"step": 0, "eval": {}}  # without held-out rows there is nothing to say


@pytest.mark.parametrize(
    ("every", "steps", "expected"),
    [(None, 5, [5]), (0, 5, [5]), (2, 5, [0, 2, 4, 5]), (3, 6, [0, 3, 6]), (9, 4, [0, 4])],
)
def test_when_an_evaluation_is_due(every: int | None, steps: int, expected: list[int]) -> None:
    """After every so many steps and after the last one; never without held-out rows."""
    settings = SimpleNamespace(eval_every=every, steps=steps)
    session: Any = SimpleNamespace(config=settings, eval_examples=[1])
    assert [step for step in range(steps + 1) if is_due(session, step)] == expected
    session.eval_examples = None
    assert not any(is_due(session, step) for step in range(steps + 1))


def test_a_step_that_was_left_out_has_no_slope() -> None:
    """Its loss is not finite, so the probes of the step before are not taken for its own."""
    optimizer = SimpleNamespace(
        probes=[SimpleNamespace(coef=3.0)],
        signal_to_noise=2.0,
        estimator=SimpleNamespace(points=lambda seed, step: [1, 2]),
    )
    session: Any = SimpleNamespace(
        optimizer=optimizer, config=SimpleNamespace(seed=0), tokens=lambda step: 30, device=torch.device("cpu")
    )
    assert coef_of(session, StepRecord(0, (0.1,), (1.0, 2.0))) == 3.0
    assert math.isnan(coef_of(session, StepRecord(0, (0.1,), (math.nan,))))
    assert live(session, StepRecord(0, (0.1,), (1.0, 2.0)), 0.5, 4) == {
        "g": 3.0, "snr": 2.0, "forwards/s": 8.0, "tokens/s": 30 * 2 / 0.5,
    }  # fmt: skip


def test_the_first_and_the_last_evaluation_are_compared(tmp_path: Path) -> None:
    """Every number of either, by name; one that only one of them has is None for the other; without any, nothing."""
    found = before_and_after(
        Rows(  # type: ignore[arg-type]
            {"step": 0, "eval": {"accuracy": 0.5, "loss": 1.0, "low": 0.2, "high": 0.8, "examples": 10}},
            {"step": 1, "loss": 3.0},
            {"step": 3, "eval": {"accuracy": 0.9, "loss": 9.0, "low": 0.7, "high": 1.0, "examples": 10}},
            {"step": 7, "eval": {"accuracy": 0.75, "loss": 0.5, "low": 0.5, "high": 0.9, "f1": 0.7, "examples": 12}},
        )
    )
    assert found == {
        "accuracy_before": 0.5, "accuracy_after": 0.75, "loss_before": 1.0, "loss_after": 0.5, "low_before": 0.2,
        "low_after": 0.5, "high_before": 0.8, "high_after": 0.9, "f1_before": None, "f1_after": 0.7,
        "eval_examples": 12,
    }  # fmt: skip
    with RunFolder.create(tmp_path / "run", "model: m\n") as folder:
        folder.log_metrics({"step": 0, "eval": {}})
        assert before_and_after(folder) == {}


def test_a_loss_that_is_not_finite_is_a_number(tmp_path: Path) -> None:
    """The file holds it as text; what a run came to is compared as numbers."""
    with RunFolder.create(tmp_path / "run", "model: m\n") as folder:
        folder.log_metrics({"step": 0, "eval": {"loss": math.inf, "accuracy": 0.5, "examples": 2}})
        folder.log_metrics({"step": 1, "eval": {"loss": math.nan, "accuracy": 0.0, "examples": 2}})
        found = before_and_after(folder)
    assert found["loss_before"] == math.inf and math.isnan(found["loss_after"])
    assert (found["accuracy_before"], found["low_after"], found["eval_examples"]) == (0.5, None, 2)


def test_an_evaluation_is_written_and_said(config: Callable[..., TrainConfig]) -> None:
    """With held-out rows its numbers stand in the line of its step, and the watcher hears of them."""
    settings, watch = config(steps=2, eval_every=1), Noting()
    result = train(settings, watch)
    rows = [row for row in RunPaths(settings.output_dir).logged() if "eval" in row]
    assert [row["step"] for row in rows] == watch.evals == [0, 1, 2]
    for row, when in ((rows[0], "before"), (rows[-1], "after")):
        assert row["eval"]["loss"] == result[f"loss_{when}"] and row["eval"]["examples"] == 10
