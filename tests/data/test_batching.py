"""Units and their order: a fixed partition, a pure function of (seed, step)."""

from __future__ import annotations

import random

import numpy as np
import pytest

from zotune.data.batching import make_units, units_of_step

PINNED_UNITS = [[2, 4, 7, 5], [0, 6, 3, 1]]
PINNED_STEPS = [[0, 4], [3, 1], [2, 0], [2, 3], [4, 1]]
PINNED_FAR = [2, 4]


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 100])
@pytest.mark.parametrize("size", [1, 8])
@pytest.mark.parametrize("bucket", [True, False])
def test_units_partition_the_examples(n: int, size: int, bucket: bool) -> None:
    """Every example once, ceil(n / size) units, at most one of them short."""
    units = make_units([(i * 7) % 13 for i in range(n)], size, seed=3, bucket=bucket)
    assert sorted(i for unit in units for i in unit) == list(range(n))
    assert len(units) == -(-n // size)
    assert sum(len(unit) < size for unit in units) <= 1


def test_buckets_hold_neighbouring_lengths() -> None:
    """No example of a unit is longer than one of a later unit, and equal lengths are shuffled."""
    lengths = [i % 10 for i in range(200)]
    units = make_units(lengths, 8, seed=0)
    flat = [lengths[i] for unit in units for i in unit]
    assert flat == sorted(flat)
    zeros = [i for unit in units for i in unit if lengths[i] == 0]
    assert zeros != sorted(zeros)


def test_without_buckets_the_order_is_random() -> None:
    """The order follows the seed, not the length."""
    lengths = list(range(50))
    assert make_units(lengths, 5, 0, bucket=False) != make_units(lengths, 5, 1, bucket=False)
    flat = [i for unit in make_units(lengths, 5, 0, bucket=False) for i in unit]
    assert flat != sorted(flat)


def test_pinned_values() -> None:
    """The stream may not change between versions or platforms: resumed runs depend on it."""
    assert make_units([5] * 8, 4, seed=0) == PINNED_UNITS
    assert [units_of_step(5, 2, seed=7, step=step) for step in range(5)] == PINNED_STEPS
    assert units_of_step(5, 2, seed=-1, step=10**12) == PINNED_FAR


def test_epochs_are_permutations_laid_end_to_end() -> None:
    """Each run of n units holds every unit once, epochs differ, and steps may straddle them."""
    n, per_step, steps = 7, 3, 21
    flat = [unit for step in range(steps) for unit in units_of_step(n, per_step, seed=5, step=step)]
    epochs = [tuple(flat[start : start + n]) for start in range(0, len(flat), n)]
    assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
    assert len(set(epochs)) > 1


def test_more_units_per_step_than_units() -> None:
    """A step may hold several epochs."""
    assert sorted(units_of_step(2, 5, seed=0, step=0)[:4]) == [0, 0, 1, 1]


def test_global_generators_are_left_alone() -> None:
    """Neither numpy's nor Python's global state moves or matters."""
    state, python_state = np.random.get_state()[1].copy(), random.getstate()
    first = make_units([1] * 20, 4, 0), units_of_step(9, 4, 0, 2)
    assert (np.random.get_state()[1] == state).all() and random.getstate() == python_state
    np.random.seed(1)
    random.seed(1)
    assert (make_units([1] * 20, 4, 0), units_of_step(9, 4, 0, 2)) == first


def test_every_order_is_about_as_likely() -> None:
    """Of 6,000 seeds each of the 6 orders of three units gets 1,000, within five standard deviations."""
    counts: dict[tuple[int, ...], int] = {}
    for seed in range(6000):
        order = tuple(units_of_step(3, 3, seed, 0))
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 6
    assert max(abs(count - 1000) for count in counts.values()) < 5 * (6000 * 1 / 6 * 5 / 6) ** 0.5


@pytest.mark.parametrize("bad", [(0, 1, 0), (1, 0, 0), (1, 1, -1)])
def test_bad_arguments(bad: tuple[int, int, int]) -> None:
    """Numbers that make no sense are refused."""
    with pytest.raises(ValueError):
        units_of_step(bad[0], bad[1], 0, bad[2])
    with pytest.raises(ValueError):
        make_units([1], 0, 0)
