"""Series made ready to be drawn: what must not change stays, and nothing that is not finite leaks into it."""

from __future__ import annotations

import math

import pytest

from zotune.curves import columns, grouped, histogram, smooth


def test_short_curves_are_whole_and_long_ones_are_means() -> None:
    """Up to 600 points nothing changes; of more, the means of the groups have the mean of all."""
    short = [(float(i), float(i % 7)) for i in range(600)]
    assert grouped(short) == short
    long = [(float(i), float(i % 7)) for i in range(1800)]
    found = grouped(long)
    assert len(found) == 600 and found[0] == (1.0, 1.0)
    assert sum(y for _, y in found) / 600 == pytest.approx(sum(y for _, y in long) / 1800)


def test_smoothing_keeps_lines_and_drops_what_is_not_finite() -> None:
    """A constant stays, noise shrinks, nan leaves no trace; on a logarithmic scale a constant stays too."""
    assert smooth([(float(i), 2.0) for i in range(50)]) == [(float(i), pytest.approx(2.0)) for i in range(50)]
    noisy = [(float(i), float((-1) ** i)) for i in range(400)]
    assert max(abs(y) for _, y in smooth(noisy)[20:-20]) < 0.05
    assert [x for x, _ in smooth([(0.0, 1.0), (1.0, math.nan), (2.0, 1.0)])] == [0.0, 2.0]
    assert smooth([(0.0, 8.0)] * 3, math.log, math.exp)[1][1] == pytest.approx(8.0)


def test_histogram_counts_finite_values_once() -> None:
    """The last edge belongs to the last bin."""
    assert histogram([0.0, 0.5, 1.0, 2.0, math.inf, math.nan], [0.0, 1.0, 2.0]) == [2, 2]
    assert columns([(1.0, 2.0), (3.0, 4.0)]) == ([1.0, 3.0], [2.0, 4.0])
