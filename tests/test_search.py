"""Trials by optuna: judged on held-out rows, repeatable, resumable; the base weights come back for each."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from zotune.config import TrainConfig
from zotune.errors import ConfigError
from zotune.search import search
from zotune.train import train
from zotune.watch import Quiet

pytest.importorskip("optuna", reason="needs the extra tune")
Config = Callable[..., TrainConfig]


def test_trials_are_the_runs_that_train_makes(config: Config, tmp_path: Path) -> None:
    """The loss of every finished trial is that of a run with its lr and eps; the best of them is returned."""
    settings = config(scope="last:1", steps=6)
    found = search(settings, Quiet(), trials=3)
    assert len(found["trials"]) == 3 and found["trials"][0]["lr"] == settings.lr
    finished = [row for row in found["trials"] if row["loss"] is not None]
    assert found["loss"] == min(row["loss"] for row in finished)
    for i, row in enumerate(finished):
        run = config(scope="last:1", steps=6, lr=row["lr"], eps=row["eps"], output_dir=tmp_path / str(i))
        assert train(run, Quiet())["loss_after"] == pytest.approx(row["loss"], rel=1e-6)


def test_a_stopped_search_goes_on(config: Config, tmp_path: Path) -> None:
    """Trials in the study are not made again."""
    settings = config(scope="norms", steps=3)
    first = search(settings, Quiet(), trials=2, study=tmp_path / "study.db")
    again = search(settings, Quiet(), trials=3, study=tmp_path / "study.db")
    assert again["trials"][:2] == first["trials"] and len(again["trials"]) == 3


def test_a_rate_that_diverges_is_no_result(config: Config) -> None:
    """Numbers that are not finite end a trial, not the search; if all end so, that is said."""
    with pytest.raises(ConfigError, match="no trial ended with a finite loss"):
        search(config(scope="full", lr=1e4, dtype="float16", steps=4), Quiet(), trials=2)


def test_what_a_search_needs(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held-out rows, and optuna."""
    with pytest.raises(ConfigError, match="held-out rows"):
        search(config(eval=None), Quiet())
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"zotune\[tune\]"):
        search(config(), Quiet())


def test_without_a_rate_the_range_test_says_where_to_begin(config: Config) -> None:
    """The first trial is the range test's recommendation."""
    from zotune.tune import tune

    settings = config(lr=None, eps=None, scope="norms", steps=2)
    expected = tune(settings, Quiet())
    found = search(settings, Quiet(), trials=1)
    assert (found["trials"][0]["lr"], found["trials"][0]["eps"]) == (expected["lr"], expected["eps"])
