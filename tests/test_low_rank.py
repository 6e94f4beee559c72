"""The low-rank direction: its factors, its scale, the life of its basis."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests import models
from tests.models import normals
from tests.test_direction import KEY, build, dtypes, targets, whole

from zotune.direction import Target
from zotune.errors import ConfigError
from zotune.low_rank import LowRank
from zotune.noise import Key, Purpose, noise

one_thread = models.one_thread


@dtypes
@pytest.mark.parametrize("normalize", ["none", "rms"])
def test_factors_multiply_to_the_direction(dtype: torch.dtype, normalize: Any) -> None:
    """`scale u v'` in float64 equals the block up to float32 rounding; vectors have no factors."""
    direction, every = LowRank(3, 2, "gaussian", normalize), targets(dtype)
    direction.prepare(every)
    for target in every:
        factors = direction.factors(target, KEY)
        if target.data.dim() < 2:
            assert factors is None
            continue
        assert factors is not None and factors.u.dtype == factors.v.dtype == dtype
        product = factors.scale * factors.u.double() @ factors.v.double().T
        height, columns = target.matrix_shape
        found = whole(direction, target).double().view(height, columns)
        torch.testing.assert_close(found, product, rtol=0, atol=1e-14 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("rank", [1, 4, 16])
def test_rms_keeps_the_variance_of_one_whatever_the_rank(rank: int) -> None:
    """The mean square of Z is 1 within 4.5 standard errors, from 200 draws of a matrix of 64 by 48."""
    target = Target("w", torch.zeros(64, 48))
    direction = LowRank(rank, 1)
    direction.prepare([target])
    squares = torch.stack([whole(direction, target, Key(0, step)).square().mean() for step in range(200)]).double()
    assert abs(float(squares.mean()) - 1) < 4.5 * float(squares.std()) / 200**0.5


def test_one_v_serves_a_window_and_all_its_queries() -> None:
    """V changes at multiples of the interval only, U with every step and query; purposes keep U and V apart."""
    direction, every = build("lowrank")
    found = {(step, query): direction.factors(every[0], Key(3, step, query)) for step in range(7) for query in range(2)}
    for (step, query), factors in found.items():
        for (other_step, other_query), other in found.items():
            assert factors is not None and other is not None
            assert torch.equal(factors.v, other.v) == (step // 3 == other_step // 3)
            assert torch.equal(factors.u, other.u) == ((step, query) == (other_step, other_query))
    window = noise("gaussian", Key(3, 2, 0, Purpose.BASIS), "matrix", 0, 10).view(5, 2)
    factors = found[6, 1]
    assert factors is not None and torch.equal(factors.v, window)


def test_queries_may_own_their_basis() -> None:
    """With `own` no two queries share V, a window can no longer be summed in u, and one query is as without it."""
    weight = normals((6, 5), 1)
    shared, own = LowRank(2, 1), LowRank(2, 1, own=True)
    for direction in (shared, own):
        direction.prepare([Target("w", weight)])
    keys, found = [Key(0, 3, query) for query in range(2)], []
    for direction in (shared, own):
        found.append([direction.factors(Target("w", weight), key) for key in keys])
    assert torch.equal(found[0][0].v, found[0][1].v) and not torch.equal(found[1][0].v, found[1][1].v)
    assert torch.equal(found[0][0].v, found[1][0].v) and torch.equal(found[0][0].u, found[1][0].u)
    assert LowRank(2, 50, own=True).window() == 1


@pytest.mark.parametrize(
    "wrong", [{"rank": 0, "interval": 50}, {"rank": -1, "interval": 50}, {"rank": 2, "interval": 0}]
)
def test_low_rank_refuses_what_is_no_rank_or_interval(wrong):
    """A rank or an interval below 1 is one clear error, not a division by zero later."""
    with pytest.raises(ConfigError, match="must be at least 1"):
        LowRank(**wrong)


@pytest.mark.parametrize("own", [False, True])
def test_changes_of_all_tensors_are_those_of_each(own: bool) -> None:
    """In a few calls for all of them, with every tensor's own scales; vectors have none."""
    direction = LowRank(2, 5, own=own)
    targets = [Target("a", torch.zeros(6, 4)), Target("b", torch.zeros(7)), Target("c", torch.zeros(3, 9))]
    direction.prepare(targets)
    keys = [Key(0, 0), Key(0, 0, 1)]
    terms = [[(key, 0.1 * (i + 1) * (1 + key.query)) for key in keys] for i in range(3)]
    for target, own_terms, found in zip(targets, terms, direction.combined_all(targets, terms), strict=True):
        expected = direction.combined(target, own_terms) if target.data.dim() > 1 else None
        if found is None or expected is None:
            assert found is expected
        else:
            assert torch.equal(found.u, expected.u) and torch.equal(found.v, expected.v)
