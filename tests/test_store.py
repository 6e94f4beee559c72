"""Stochastic rounding: unbiased, within one step of the grid, exact where nothing moves; and updates that arrive."""

from __future__ import annotations

import math

import pytest
import torch
from tests import models
from tests.models import Weights, flat, normals, target_of, train
from torch import Tensor

from zotune import noise as stream
from zotune.noise import LAWS, Key, Law, Purpose
from zotune.records import StepRecord
from zotune.store import Exact, StochasticRounding, round_bfloat16, round_float16, store_for

one_thread = models.one_thread
HALVES = (torch.bfloat16, torch.float16)
ROUND = {torch.bfloat16: round_bfloat16, torch.float16: round_float16}
EVERY_BITS = torch.arange(1 << 16, dtype=torch.int32)

halves = pytest.mark.parametrize("dtype", HALVES)


def neighbours(value: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The grid values below and above, in float64."""
    near = value.to(dtype)
    down = torch.where(near.to(value.dtype) > value, torch.nextafter(near, torch.tensor(-math.inf, dtype=dtype)), near)
    up = torch.where(near.to(value.dtype) < value, torch.nextafter(near, torch.tensor(math.inf, dtype=dtype)), near)
    return down.double(), up.double()


def test_each_dtype_has_its_store() -> None:
    """Wide weights are copied, halves are rounded stochastically, other dtypes are refused by name."""
    assert isinstance(store_for(torch.float32), Exact) and isinstance(store_for(torch.float64), Exact)
    assert all(isinstance(store_for(dtype), StochasticRounding) for dtype in HALVES)
    with pytest.raises(TypeError, match="int8"):
        store_for(torch.int8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wide_weights_take_the_value_and_draw_no_dither(dtype: torch.dtype) -> None:
    """The value is written bit for bit; no random bits are asked for."""
    weight, value = torch.zeros(5, dtype=dtype), normals(5, 1, dtype)

    def never() -> Tensor:
        raise AssertionError("dither was drawn")

    Exact().write(weight, value, never)
    assert torch.equal(weight, value)


@halves
@pytest.mark.parametrize("value", [0.02, -1.2345, 3e-5, -7e-6, 5.9e-8, 1e-9, 60000.7, 2.0**-14 * 0.99999])
def test_the_mean_over_all_dithers_is_the_value(dtype: torch.dtype, value: float) -> None:
    """Over all 65,536 dithers, only the two neighbours occur, and their mean is exact to 1/8192 of their distance.

    The small values are subnormal in float16; 2**-14 is where its normal numbers begin.
    """
    wide = torch.tensor([value])
    rounded = ROUND[dtype](wide.expand(1 << 16).contiguous(), EVERY_BITS).double()
    low, high = (side.item() for side in neighbours(wide, dtype))
    assert set(rounded.unique().tolist()) <= {low, high}
    # Float16 uses 13 of the 16 bits below 24 mantissa bits; a subnormal value has more below the cut.
    assert abs(rounded.mean().item() - wide.double().item()) <= (high - low) / 8192


@halves
def test_values_of_the_grid_never_move(dtype: torch.dtype) -> None:
    """Every finite 16-bit number, both zeros and all subnormals included, keeps its bits under the largest dither."""
    grid = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    grid = grid[grid.isfinite()]
    for bits in (0, 0x1FFF, 0xFFFF, 0x8001):
        rounded = ROUND[dtype](grid.float(), torch.full_like(grid, bits, dtype=torch.int32))
        assert torch.equal(rounded.view(torch.int16), grid.view(torch.int16)), bits


@halves
def test_infinities_and_nan_survive(dtype: torch.dtype) -> None:
    """A weight that is not finite is not turned into a number."""
    values, bits = torch.tensor([math.inf, -math.inf, math.nan, 0.0]), torch.full((4,), 0xFFFF, dtype=torch.int32)
    values.view(torch.int32)[3] = 0x7FFFFFFF  # the NaN that a GPU makes: adding to its bits would run over
    rounded = ROUND[dtype](values, bits).float()
    assert torch.equal(rounded[:2], values[:2]) and bool(rounded[2:].isnan().all())


def test_float16_subnormals_are_unbiased() -> None:
    """A million values around float16's smallest numbers: the mean error is 0 within 4.5 standard errors."""
    value = normals(1_000_000, 3, spread=2.0**-20)
    bits = stream.bits16(Key(5, 0, 0, Purpose.DITHER), "w", 0, value.numel())
    error = (round_float16(value, bits).double() - value.double()) * 2.0**24
    assert float(error.abs().max()) < 1
    assert abs(float(error.mean())) < 4.5 * float(error.std()) / 1000
    # Not just on average: shares of the distance to the lower neighbour are kept within each tenth of it.
    share = value.double() * 2.0**24 % 1
    for tenth in range(10):
        inside = (share * 10).floor() == tenth
        count = int(inside.sum())
        assert abs(float(error[inside].mean())) < 4.5 * float(error[inside].std()) / math.sqrt(count)


@halves
@pytest.mark.parametrize("law", LAWS)
def test_small_updates_arrive(dtype: torch.dtype, law: Law) -> None:
    """lr * g = 1e-6 on a million weights of N(0, 0.02): applied over intended is 1 within 2 %.

    Rounded to nearest, almost nothing would arrive in bfloat16. The projection on z is measured over sixteen steps,
    each from the same weights: its standard error is then below 0.4 %.
    """
    shape = (1024, 1025)
    base, applied = normals(shape, 8, dtype, 0.02), []
    model = Weights(w=base.clone())
    optimizer = train("mezo", model, lr=1.0, eps=1.0, law=law)
    for step in range(16):
        key = optimizer.estimator.points(0, step)[0].key
        optimizer.replay(StepRecord(step, (1.0,), (1e-6, -1e-6)))
        assert optimizer.probes[0].coef == 1e-6
        z = optimizer.direction.block(target_of(optimizer, "w"), key, 0, base.numel()).double()
        moved = flat(model).double() - base.reshape(-1).double()
        applied.append(float((moved @ z) / (z @ z)) / -1e-6)
        with torch.no_grad():
            model.w.copy_(base)
    if dtype == torch.bfloat16:  # what rounding to nearest would have left of the last of them
        nearest = (base.reshape(-1).double() - 1e-6 * z).to(dtype)
        assert float((nearest == base.reshape(-1)).float().mean()) > 0.95
    mean = torch.tensor(applied, dtype=torch.float64)
    assert float(mean.std()) / 4 < 0.006
    assert abs(float(mean.mean()) - 1) < 0.02, applied
