"""Which examples a step sees: a pure function of (seed, step), so that resuming needs no loader state.

Only the raw output of numpy's PCG64 and SeedSequence is used, which numpy keeps stable across versions and
platforms. Its shuffles are not promised to stay the same, so a permutation is an argsort of raw 64-bit keys.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.random import PCG64, SeedSequence
from numpy.typing import NDArray

# Separates the two uses of one run seed. Changing a value changes the data order of every run.
_UNITS = 1
_EPOCHS = 2


def make_units(lengths: Sequence[int], unit_size: int, seed: int, bucket: bool = True) -> list[list[int]]:
    """A fixed partition of the examples into ceil(n / unit_size) units; only the last may be short.

    `lengths[i]` is the length of example i in tokens. With `bucket`, examples of similar length share a
    unit (ties in seeded random order), so little is padded; without it the order is seeded random.
    """
    if unit_size < 1:
        raise ValueError(f"unit_size must be at least 1, not {unit_size}")
    order = _permutation(len(lengths), _UNITS, seed)
    if bucket:
        # Stable, so equal lengths keep their shuffled order.
        order = order[np.argsort(np.asarray(lengths, dtype=np.int64)[order], kind="stable")]
    indices: list[int] = order.tolist()
    return [indices[start : start + unit_size] for start in range(0, len(indices), unit_size)]


def units_of_step(n_units: int, units_per_step: int, seed: int, step: int) -> list[int]:
    """The units of step `step` (0-based). Epochs are seeded permutations of the units laid end to end."""
    if n_units < 1 or units_per_step < 1 or step < 0:
        raise ValueError(f"need n_units >= 1, units_per_step >= 1, step >= 0, not {n_units}, {units_per_step}, {step}")
    units: list[int] = []
    position = step * units_per_step
    while len(units) < units_per_step:
        epoch, offset = divmod(position, n_units)
        taken = _permutation(n_units, _EPOCHS, seed, epoch)[offset : offset + units_per_step - len(units)]
        units += taken.tolist()
        position += len(taken)
    return units


def _permutation(n: int, use: int, seed: int, epoch: int = 0) -> NDArray[np.int64]:
    """A permutation of range(n), int64. Equal keys (chance about n^2 / 2^65) keep index order."""
    keys = PCG64(SeedSequence([use, seed % 2**64, epoch])).random_raw(n)
    return np.argsort(keys, kind="stable")
