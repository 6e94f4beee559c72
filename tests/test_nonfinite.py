"""A loss that is not finite: the run stops, or the step is left out, recorded, and left out again by a replay."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from zotune.config import TrainConfig
from zotune.errors import NonFiniteLoss, UserError
from zotune.history.verify import verify
from zotune.journal import StepRecord, read
from zotune.nonfinite import MOST, replay_step, skipped
from zotune.objective.label_words import LabelWords
from zotune.revisit import log_rows
from zotune.session import Session
from zotune.train import resume, train
from zotune.watch import Quiet

Config = Callable[..., TrainConfig]


@pytest.fixture
def bad_at(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`bad_at(2, 4)`: at these steps the objective's last loss is infinite."""

    def arm(*steps: int) -> None:
        step, call, now = Session.step, LabelWords.__call__, [-1]

        def stepping(session: Session) -> None:
            now[0] = session.optimizer.steps
            try:
                step(session)
            finally:
                now[0] = -1

        def losing(objective: LabelWords, model: Any, batch: Any) -> torch.Tensor:
            losses = call(objective, model, batch)
            return torch.cat([losses[:-1], losses[-1:] + math.inf]) if now[0] in steps else losses

        monkeypatch.setattr(Session, "step", stepping)
        monkeypatch.setattr(LabelWords, "__call__", losing)

    return arm


def steps_of(run: Path) -> list[StepRecord]:
    return [record for record in read(run / "journal.zoj")[1] if isinstance(record, StepRecord)]


OPTIONS: list[dict[str, Any]] = [{}, {"method": "lozo", "dtype": "bfloat16", "method_args": {"interval": 2}}]


@pytest.mark.parametrize("options", OPTIONS)
def test_skip(config: Config, bad_at: Callable[..., None], options: dict[str, Any]) -> None:
    """The bad steps are in the journal as NaN, change no weight, and everything replays and verifies."""
    bad_at(2, 4)
    busy = {"on_nonfinite": "skip", "snapshot_every": 1, "micro_batch_size": 4}
    ended = train(config(**busy, **options), Quiet())
    run = config().output_dir
    assert [record.step for record in steps_of(run)] == list(range(7)) and ended["steps"] == 7
    assert [record.step for record in steps_of(run) if skipped(record)] == [2, 4]
    hashes = {r.step: r.sha256 for r in read(run / "journal.zoj")[1] if not isinstance(r, StepRecord)}
    assert hashes[2] == hashes[3] != hashes[4] == hashes[5] != hashes[6]
    assert verify(run, Quiet())["hashes"] == 7
    rows = log_rows(run)
    assert math.isnan(rows[2]["loss"]) and "projected_gradient" not in rows[2] and rows[3]["loss"] > 0
    assert '"step": 3, "loss": "nan", "projected_gradient": "nan"' in (run / "metrics.jsonl").read_text()


@pytest.mark.parametrize("options", OPTIONS)
def test_halve_eps(config: Config, tmp_path: Path, bad_at: Callable[..., None], options: dict[str, Any]) -> None:
    """Each bad step halves the radius of those behind it; a resume from a snapshot and a replay do the same."""
    from zotune.history.undo import undo
    from zotune.rebuild import rebuild

    bad_at(1, 3)
    train(config(on_nonfinite="halve-eps", snapshot_every=2, **options), Quiet())
    run = tmp_path / "run"
    before = (run / "journal.zoj").read_bytes(), (run / "metrics.jsonl").read_bytes()
    assert [record.step for record in steps_of(run) if skipped(record)] == [1, 3]
    assert verify(run, Quiet())["hashes"] == 4
    header = read(run / "journal.zoj")[0]
    other = rebuild(header, Session(config(**options)).model)
    radii = []
    for record in steps_of(run):
        radii.append(other.estimator.eps)
        replay_step(other, record)
    eps = header["arguments"]["eps"]
    assert radii == [eps, eps, eps / 2, eps / 2, eps / 4, eps / 4, eps / 4]
    undo(run, 1)
    resume(run, Quiet())
    assert ((run / "journal.zoj").read_bytes(), (run / "metrics.jsonl").read_bytes()) == before


def test_a_branch_does_not_reinterpret_a_step_that_was_left_out(
    config: Config, tmp_path: Path, bad_at: Callable[..., None]
) -> None:
    """Before the bad step the policy may be changed, behind it not."""
    from zotune.errors import ConfigError
    from zotune.history.branch import branch

    bad_at(2)
    train(config(on_nonfinite="skip"), Quiet())
    with pytest.raises(ConfigError, match="on_nonfinite cannot be changed.*Remedy: branch before it"):
        branch(tmp_path / "run", 4, tmp_path / "late", {"on_nonfinite": "halve-eps"})
    branch(tmp_path / "run", 2, tmp_path / "early", {"on_nonfinite": "halve-eps"})
    resume(tmp_path / "early", Quiet())
    assert read(tmp_path / "early" / "journal.zoj")[0]["halve_eps"] is True
    assert verify(tmp_path / "early", Quiet())["hashes"] == 1


@pytest.mark.parametrize("left", [2, 3, 4])
def test_skip_then_resume(config: Config, tmp_path: Path, bad_at: Callable[..., None], left: int) -> None:
    """Stopped around a step that was left out, the run ends with the same bytes."""
    from zotune.history.undo import undo

    bad_at(2)
    train(config(on_nonfinite="skip"), Quiet())
    run = tmp_path / "run"
    before = (run / "journal.zoj").read_bytes(), (run / "metrics.jsonl").read_bytes()
    undo(run, 7 - left)
    resume(run, Quiet())
    assert ((run / "journal.zoj").read_bytes(), (run / "metrics.jsonl").read_bytes()) == before


def test_stop_is_the_default(config: Config, bad_at: Callable[..., None]) -> None:
    """Without the option the run stops before the bad step; a resume meets it again."""
    bad_at(2)
    with pytest.raises(NonFiniteLoss, match="the loss is inf at step 2"):
        train(config(), Quiet())
    assert len(steps_of(config().output_dir)) == 2
    with pytest.raises(NonFiniteLoss, match="at step 2"):
        resume(config().output_dir, Quiet())


def test_a_run_that_diverged_ends(config: Config, bad_at: Callable[..., None]) -> None:
    """After ten steps left out in a row the run stops, also when it was resumed between them."""
    bad_at(*range(1, 100))
    run = config().output_dir
    for attempt in (lambda: train(config(on_nonfinite="skip", steps=50), Quiet()), lambda: resume(run, Quiet())):
        with pytest.raises(NonFiniteLoss, match=f"{MOST} steps in a row were left out, and again: the loss is inf"):
            attempt()
        assert len(steps_of(run)) == 1 + MOST


def test_out_of_order() -> None:
    """A step that was left out must follow too."""

    class Taken:
        steps = 3

    with pytest.raises(UserError, match="step 5 does not follow step 3"):
        replay_step(Taken(), StepRecord(5, (0.1,), (math.nan,)))  # type: ignore[arg-type]
