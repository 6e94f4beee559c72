"""Series made ready to be drawn: shortened, smoothed, counted. A curve is a sequence of (x, y)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

_POINTS = 600  # of a line; longer ones are averaged over that many groups


def columns(curve: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """All x, and all y."""
    return [x for x, _ in curve], [y for _, y in curve]


def grouped(curve: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most _POINTS points: means over equal groups of steps."""
    count = math.ceil(len(curve) / _POINTS)
    if count <= 1:
        return list(curve)
    groups = [curve[i : i + count] for i in range(0, len(curve), count)]
    return [(_mean([x for x, _ in group]), _mean([y for _, y in group])) for group in groups]


def smooth(
    curve: Sequence[tuple[float, float]],
    to: Callable[[float], float] = float,
    back: Callable[[float], float] = float,
) -> list[tuple[float, float]]:
    """Gaussian-weighted means over a sixtieth of the curve to each side; points that are not finite are left out."""
    good = [(x, to(y)) for x, y in curve if math.isfinite(y)]
    reach = max(2, len(good) // 60)
    found = []
    for i, (x, _) in enumerate(good):
        near = [(j, good[j][1]) for j in range(max(0, i - 3 * reach), min(len(good), i + 3 * reach + 1))]
        weights = [math.exp(-0.5 * ((j - i) / reach) ** 2) for j, _ in near]
        mean = math.fsum(w * y for w, (_, y) in zip(weights, near, strict=True)) / math.fsum(weights)
        found.append((x, back(mean)))
    return found


def histogram(values: Sequence[float], edges: Sequence[float]) -> list[int]:
    """How many of the values lie between each two edges; those beyond the last one count for the last bin."""
    heights = [0] * (len(edges) - 1)
    for value in values:
        if math.isfinite(value):
            found = next((i for i, (a, b) in enumerate(pairwise(edges)) if a <= value < b), len(heights) - 1)
            heights[found] += 1
    return heights


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
