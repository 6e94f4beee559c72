"""`zotune tune`: eps and lr from a few hundred forwards, without changing a weight.

eps: the slope along the same directions is measured at many eps. Where it hardly changes from one eps to the next it is
trusted: below, rounding decides, above, the curvature of the loss. Signal-to-noise is the size of the slopes over
that change.

lr: a step along a direction z goes to theta - lr g z, a point that can be evaluated like any other. The mean change of
the loss over the directions, on the rows that the slope was measured on, is negative while lr < 2 / z'Hz.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch

from zotune.config import TrainConfig
from zotune.data.batching import units_of_step
from zotune.disk import refusal
from zotune.durable import write_file
from zotune.errors import ConfigError, UserError
from zotune.estimate import Point
from zotune.presets import preset, ratio
from zotune.session import Session
from zotune.watch import Watch
from zotune.yaml12 import dump

# Of the preset's eps: a hundredth to a hundred times it, half a decade apart.
AROUND: tuple[float, ...] = tuple(10.0 ** (power / 2) for power in range(-4, 5))
_SPAN: tuple[float, ...] = tuple(
    10.0 ** (power / 3) for power in range(-6, 7)
)  # of lr, around what the curvature suggests
# Of the largest lr at which a step still helps its own rows: a run's steps see other rows each time. On the
# demo's task the rates that learn best are an eighth of it, and a quarter is too large already (docs/log.md).
_SAFE = 0.125
_LEAST_SIGNAL = 2.0  # below it no eps gives a slope that can be trusted


def tune(config: TrainConfig, watch: Watch, directions: int = 8) -> dict[str, Any]:
    """Measure on the run's own model, rows and scope, around the preset. Returns eps, lr, largest_stable_lr, times,
    forwards, preset, and the curves `eps_curve` (eps, slope, signal_to_noise) and `lr_curve` (lr, change: of the mean
    loss, in nats).

    lr is an eighth of the largest stable one, which is that of a plain step, times what the method takes for MeZO's 1.

    Raises UserError when no eps gives a trustworthy slope, or no lr that was tried lowers the loss.
    """
    if directions < 2:
        raise ConfigError(f"directions is {directions}. Remedy: give at least 2; 8 is the default.")
    session = Session(config).begin()
    known, times = preset(session.config.method, session.config.scope), ratio(session.config.method)
    range_test = _RangeTest(session, directions, [known.eps * factor for factor in AROUND], watch)
    watch.say(f"Slopes along {directions} directions at {len(AROUND)} eps around the preset's {known.eps:g}.")
    eps_curve, slopes = range_test.over_eps()
    best = max(range(len(AROUND)), key=lambda i: eps_curve[i]["signal_to_noise"])
    if eps_curve[best]["signal_to_noise"] < _LEAST_SIGNAL:
        raise UserError(
            "no eps gives a slope that can be trusted: the loss hardly depends on the weights in scope, or is flat. "
            "Remedy: a larger scope or batch, float32 weights, or a look at the template and the label words."
        )
    watch.say(f"Steps of {len(_SPAN)} learning rates along the same directions, at eps {range_test.eps[best]:.1e}.")
    lr_curve = range_test.over_lr(best, slopes[best])
    largest = _largest_stable(lr_curve)
    if largest is None:
        raise UserError(
            "no learning rate that was tried lowers the loss. Remedy: a larger --batch-size, or more --directions."
        )
    return {
        "eps": _round(range_test.eps[best]),
        "lr": _round(largest * _SAFE * times),
        "largest_stable_lr": _round(largest),
        "times": times,
        "preset": dataclasses.asdict(known),
        "forwards": range_test.forwards,
        "eps_curve": eps_curve,
        "lr_curve": lr_curve,
    }


@final
class _RangeTest:
    """The evaluations, each direction with a batch of its own."""

    def __init__(self, session: Session, directions: int, eps: Sequence[float], watch: Watch) -> None:
        self.session, self.optimizer, self.eps, self.watch = session, session.optimizer, eps, watch
        seed, size = session.config.seed, session.units_per_step
        self.keys = [self.optimizer.estimator.points(seed, step)[0].key for step in range(directions)]
        self.units = [units_of_step(len(session.units), size, seed, step)[0] for step in range(directions)]
        self.forwards, self.total = 0, directions * (2 * len(eps) + 1 + len(_SPAN))

    def over_eps(self) -> tuple[list[dict[str, float]], list[list[float]]]:
        """The curve, and the slopes (eps, direction)."""
        slopes: list[list[float]] = []
        self.curvature: list[float] = []
        for eps in self.eps:
            sides = [
                self._losses(unit, [Point(key, eps), Point(key, -eps)])
                for key, unit in zip(self.keys, self.units, strict=True)
            ]
            slopes.append([(plus - minus) / (2 * eps) for plus, minus in sides])
            self.curvature.append(_mean([(plus + minus) / 2 for plus, minus in sides]))
        curve = []
        for i, eps in enumerate(self.eps):
            near = [slopes[j] for j in (i - 1, i + 1) if 0 <= j < len(self.eps)]
            noise = max(_rms([a - b for a, b in zip(slopes[i], other, strict=True)]) for other in near)
            signal = _rms(slopes[i])
            sound = math.isfinite(signal) and math.isfinite(noise) and signal > 0
            trusted = signal / max(noise, 1e-12 * signal) if sound else 0.0
            curve.append({"eps": eps, "slope": signal, "signal_to_noise": trusted})
        return curve, slopes

    def over_lr(self, best: int, slopes: Sequence[float]) -> list[dict[str, float]]:
        """The curve of the mean change of the loss."""
        before = [self._losses(unit, [Point(key, 0.0)])[0] for key, unit in zip(self.keys, self.units, strict=True)]
        curve = []
        for lr in (self._middle(best, slopes) * factor for factor in _SPAN):
            after = [
                self._losses(unit, [Point(key, -lr * slope)])[0]
                for key, slope, unit in zip(self.keys, slopes, self.units, strict=True)
            ]
            curve.append({"lr": lr, "change": _mean([a - b for a, b in zip(after, before, strict=True)])})
        return curve

    def _middle(self, best: int, slopes: Sequence[float]) -> float:
        """Where to look: 1 / z'Hz from the second difference of the loss; without curvature, a step as long as eps."""
        size = _rms(slopes)
        wide = min(best + 1, len(self.eps) - 1)
        rise = self.curvature[wide] - self.curvature[max(best - 2, 0)]
        curvature = 2 * rise / self.eps[wide] ** 2
        # One step moves theta by lr |g| along z: never less than a tenth of eps, never more than a hundred times.
        low, high = 0.1 * self.eps[best] / size, 100 * self.eps[best] / size
        return min(max(1 / curvature, low), high) if curvature > 0 else 3 * self.eps[best] / size

    def _losses(self, unit: int, points: Sequence[Point]) -> list[float]:
        """The mean loss of a batch at each point."""
        session = self.session
        batch = session.batch(session.units[unit])
        within = session.reuse.within(session.objective, batch, unit)
        with torch.no_grad():
            found = self.optimizer.evaluator.losses(session.objective, batch, points, within)
        self.forwards += len(points)
        self.watch.count(self.forwards, self.total, "forward")
        return [float(row.mean()) for row in found]


def write_values(path: Path, values: Mapping[str, float | str]) -> None:
    """Set options in a YAML config, in their own lines; comments and other lines stay. Raises ConfigError."""
    from zotune.resolve import read_file

    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}. Remedy: `zotune init {path}` makes one."
        ) from error
    for name, value in values.items():
        line = dump({name: value}).strip() if isinstance(value, str) else f"{name}: {value:g}"
        # A line that sets it, else the comment that `zotune init` wrote in its place.
        for pattern in (rf"^{name}:.*$", rf"^# {name}:.*$"):
            text, count = re.subn(pattern, line.replace("\\", r"\\"), text, count=1, flags=re.MULTILINE)
            if count:
                break
        else:
            text = text.rstrip("\n") + f"\n{line}\n"
    try:
        write_file(path, text.encode())
    except OSError as error:
        raise refusal(str(path), error, "check its permissions", ConfigError) from error
    read_file(path)


def _largest_stable(curve: Sequence[dict[str, float]]) -> float | None:
    """The largest lr before the loss first rises; None if it never falls."""
    fell = None
    for row in curve:
        if not row["change"] < 0:
            if fell is not None:
                return fell
            continue
        fell = row["lr"]
    return fell


def _rms(values: Sequence[float]) -> float:
    return math.sqrt(_mean([value * value for value in values]))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _round(value: float) -> float:
    """One digit: more is not known."""
    return float(f"{value:.0e}")
