"""The range test: it finds what is known of a quadratic, changes no weight, and writes into a config."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from zotune import tune as module
from zotune.config import TrainConfig
from zotune.errors import ConfigError, UserError
from zotune.estimate import Point
from zotune.noise import Key
from zotune.presets import preset
from zotune.resolve import read_file
from zotune.starter import write_starter
from zotune.train import train
from zotune.tune import AROUND, tune, write_values
from zotune.watch import Console, Quiet


@pytest.fixture
def settings(config: Callable[..., TrainConfig]) -> TrainConfig:
    return config(lr=None, eps=None, scope="norms", batch_size=4)


def test_range_test(settings: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both curves are there, the values come from them, the forwards are counted, and no weight changes."""
    sessions: list[Any] = []

    def begin(given: TrainConfig) -> Any:
        sessions.append(real(given))
        return sessions[-1]

    real = module.Session
    monkeypatch.setattr(module, "Session", begin)
    found = tune(settings, Quiet(), directions=4)
    eps = [row["eps"] for row in found["eps_curve"]]
    assert eps == pytest.approx([preset("mezo", "norms").eps * factor for factor in AROUND])
    assert found["forwards"] == 4 * (2 * len(AROUND) + 1 + 13)
    assert found["preset"] == asdict(preset("mezo", "norms"))
    best = max(found["eps_curve"], key=lambda row: row["signal_to_noise"])
    assert found["eps"] == pytest.approx(best["eps"], rel=0.1)
    # At the largest lr that is called stable the loss fell.
    changes = {float(f"{row['lr']:.0e}"): row["change"] for row in found["lr_curve"]}
    assert changes[found["largest_stable_lr"]] < 0 and found["lr"] == pytest.approx(
        found["largest_stable_lr"] / 8, rel=0.3
    )
    fresh = real(settings)
    for (name, a), (_, b) in zip(sessions[0].model.named_parameters(), fresh.model.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_recommended_values_learn(settings: TrainConfig) -> None:
    """Fifty steps with the values found lower the loss on the training rows."""
    found = tune(settings, Quiet())
    run = replace(settings, lr=found["lr"], eps=found["eps"], steps=50, eval=settings.train, batch_size=8)
    result = train(run, Quiet())
    assert result["loss_after"] < result["loss_before"]


class Quadratic:
    """A session whose loss along every direction is slope s + curvature s^2 / 2, in float32."""

    units = [[0], [1], [2]]
    units_per_step = 1

    method, scope = "mezo", "full"

    def __init__(self, slope: float, curvature: float) -> None:
        self.slope, self.curvature = slope, curvature
        self.config = self
        self.seed = 0
        self.optimizer = self.estimator = self.evaluator = self.reuse = self
        self.objective = None

    def begin(self) -> Quadratic:
        return self

    def points(self, seed: int, step: int) -> list[Point]:
        return [Point(Key(seed, step), 1.0)]

    def batch(self, unit: int) -> None:
        return None

    def within(self, *_: Any) -> None:
        return None

    def losses(self, objective: Any, batch: Any, points: list[Point], within: Any) -> torch.Tensor:
        s = torch.tensor([point.scale for point in points])
        return (1 + self.slope * s + self.curvature * s * s / 2)[:, None]


def test_largest_stable_lr_of_a_quadratic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Along z a step helps while lr < 2 / z'Hz: the value found is that, up to the grid's factor of 10^(1/3)."""
    for curvature in (10.0, 1000.0):
        monkeypatch.setattr(module, "Session", lambda _, c=curvature: Quadratic(2.0, c))
        found = tune(None, Quiet())  # type: ignore[arg-type]
        assert 2 / curvature / 10 ** (1 / 3) * 0.95 <= found["largest_stable_lr"] <= 2 / curvature


def test_the_rate_is_on_the_methods_own_scale(settings: TrainConfig) -> None:
    """What is measured is a plain step; a method with steps of another size gets its multiple of that rate."""
    plain, own = (tune(replace(settings, method=name), Quiet(), 3) for name in ("mezo", "meazo"))
    assert plain["largest_stable_lr"] == own["largest_stable_lr"] and (plain["times"], own["times"]) == (1, 10)
    assert own["lr"] == pytest.approx(10 * own["largest_stable_lr"] / 8, rel=0.3)


def test_it_counts_its_forwards(settings: TrainConfig) -> None:
    """The watcher hears how far it is, up to all of them."""
    stream = io.StringIO()
    found = tune(settings, Console(stream), 2)
    assert f"forward {found['forwards']}/{found['forwards']}" in stream.getvalue()


def test_small_eps_is_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 the slope at the least eps is mostly rounding, and that eps is not chosen."""
    monkeypatch.setattr(module, "Session", lambda _: Quadratic(0.3, 10.0))
    found = tune(None, Quiet())  # type: ignore[arg-type]
    curve = [row["signal_to_noise"] for row in found["eps_curve"]]
    assert 10 * curve[0] < max(curve) and found["eps"] >= 1e-3


def test_flat_and_hopeless_objectives_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss that does not move, and one direction: errors with the remedy."""
    monkeypatch.setattr(module, "Session", lambda _: Quadratic(0.0, 0.0))
    with pytest.raises(UserError, match="no eps gives a slope that can be trusted.*Remedy"):
        tune(None, Quiet())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="directions is 1. Remedy"):
        tune(None, Quiet(), 1)  # type: ignore[arg-type]


def test_values_go_into_the_config(tmp_path: Path) -> None:
    """Over a value, over its comment, or at the end; all other lines stay; a missing file names `zotune init`."""
    path = tmp_path / "run.yaml"
    write_starter(path, {"model": "m", "train": "t.jsonl", "lr": 1e-3})
    before = path.read_text().splitlines()
    write_values(path, {"lr": 2e-7, "eps": 1e-3})
    after = path.read_text().splitlines()
    assert [line for line in after if line not in before] == ["lr: 2e-07", "eps: 0.001"] and len(after) == len(before)
    assert (read_file(path)[0]["lr"], read_file(path)[0]["eps"]) == (2e-7, 1e-3)
    (tmp_path / "short.yaml").write_text("model: m")
    write_values(tmp_path / "short.yaml", {"lr": 0.5})
    assert (tmp_path / "short.yaml").read_text() == "model: m\nlr: 0.5\n"
    with pytest.raises(ConfigError, match="Remedy: `zotune init"):
        write_values(tmp_path / "none.yaml", {})
