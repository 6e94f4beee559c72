"""Where a step evaluates, and how losses become probes."""

from __future__ import annotations

import math

import pytest

from zotune.errors import ConfigError
from zotune.estimate import OneSided, Point, Probe, TwoSided, signal_to_noise
from zotune.noise import Key


@pytest.mark.parametrize("queries", [1, 3])
def test_each_query_is_evaluated_on_both_sides_of_its_own_key(queries: int) -> None:
    """Plus before minus, query after query: the order in which the journal records losses."""
    points = TwoSided(0.25, queries).points(9, 4)
    expected = [Point(Key(9, 4, query), side) for query in range(queries) for side in (0.25, -0.25)]
    assert points == expected


def test_a_probe_is_the_central_difference_shared_among_queries() -> None:
    """`(plus - minus) / (2 eps n)`, and the losses stay with the probe."""
    probes = TwoSided(0.5, 2).probes(9, 4, [3.0, 1.0, 2.0, 6.0])
    assert probes == [Probe(Key(9, 4, 0), 1.0, (3.0, 1.0)), Probe(Key(9, 4, 1), -2.0, (2.0, 6.0))]


def test_equal_losses_give_a_coefficient_of_zero() -> None:
    """A constant objective has no slope in any direction, without rounding."""
    assert [probe.coef for probe in TwoSided(1e-3, 3).probes(0, 0, [0.1] * 6)] == [0.0] * 3


def test_points_and_probes_are_pure() -> None:
    """Asked twice, or for another step in between, an estimator answers the same."""
    estimator = TwoSided(1e-3, 2)
    first = estimator.points(1, 2)
    estimator.points(1, 3)
    assert estimator.points(1, 2) == first
    assert [probe.key for probe in estimator.probes(1, 2, [0.0] * 4)] == [point.key for point in first[::2]]


@pytest.mark.parametrize("wrong", [{"eps": 0.0}, {"eps": -1e-3}, {"eps": float("nan")}, {"eps": 1e-3, "queries": 0}])
def test_two_sided_refuses_what_is_no_radius_or_count(wrong):
    """A radius that is not positive and fewer than one query are refused before anything is evaluated."""
    with pytest.raises(ConfigError, match="must be"):
        TwoSided(**wrong)


@pytest.mark.parametrize("queries", [1, 3])
def test_one_sided_differences_share_the_centre(queries: int) -> None:
    """The centre first, then one point per direction; each probe is its forward difference divided by their number."""
    estimator = OneSided(0.25, queries)
    points = estimator.points(9, 4)
    assert points == [Point(Key(9, 4), 0.0), *(Point(Key(9, 4, query), 0.25) for query in range(queries))]
    losses = [2.0, 3.0, 1.0, 2.5][: queries + 1]
    probes = estimator.probes(9, 4, losses)
    assert [p.key for p in probes] == [point.key for point in points[1:]]
    assert [p.coef for p in probes] == [(loss - 2.0) / (0.25 * queries) for loss in losses[1:]]
    assert [p.losses for p in probes] == [(loss, 2.0) for loss in losses[1:]]


@pytest.mark.parametrize("wrong", [{"eps": 0.0, "queries": 1}, {"eps": 1e-3, "queries": 0}])
def test_one_sided_refuses_what_is_no_radius_or_count(wrong):
    """The same limits as for two sides."""
    with pytest.raises(ConfigError, match="must be"):
        OneSided(**wrong)


def test_signal_to_noise_is_the_t_of_a_paired_test() -> None:
    """By hand for differences 1, 2, 3: mean 2, standard error 1/sqrt(3); the edges say what they are."""
    assert signal_to_noise([2.0, 4.0, 6.0], [1.0, 2.0, 3.0]) == pytest.approx(2 * 3**0.5)
    assert math.isnan(signal_to_noise([1.0], [0.0]))
    assert signal_to_noise([1.0, 2.0], [0.0, 1.0]) == math.inf and signal_to_noise([1.0, 2.0], [1.0, 2.0]) == 0
