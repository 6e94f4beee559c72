"""What a forward on the meta device is found to take."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from zotune.direction import Dense, Target
from zotune.errors import UserError
from zotune.low_rank import LowRank
from zotune.meter import Meter, Priced
from zotune.noise import Key


def test_meter_counts_what_is_alive() -> None:
    """Peak and work of a small chain of operations, by hand; a view and what was there before count nothing."""
    with torch.device("meta"):
        layer, x = nn.Linear(8, 4, bias=False), torch.empty(2, 8)
    with torch.inference_mode(), Meter() as meter:
        y = layer(x)  # 2 x 4 floats
        z = y.t().t() * 2  # as many
        del y
        w = z + 1  # y is gone: two at a time
    assert meter.peak == 2 * 32 and meter.live == 64 and w.shape == (2, 4)
    assert [flops for flops, *_ in meter.products] == [2.0 * 2 * 8 * 4]
    assert meter.passes == [(64.0, 1.0), (64.0, 1.0)]


def test_meter_makes_no_matrix_of_attention_scores() -> None:
    """Attention takes the memory of its output, as fused kernels do."""
    q = torch.empty(1, 2, 64, 8, device="meta")
    with torch.inference_mode(), Meter() as meter:
        nn.functional.scaled_dot_product_attention(q, q, q)
    assert meter.peak == q.numel() * 4
    assert meter.products[0][0] == 2 * 2 * 64 * 64 * 16


def test_a_loop_can_stand_for_many() -> None:
    """`times` is noted beside each operation; a product's rows are those of its result."""
    with torch.inference_mode(), Meter() as meter:
        meter.times = 7.0
        torch.empty(2, 3, 4, device="meta") @ torch.empty(4, 5, device="meta")
        meter.times = 1.0
        torch.empty(2, device="meta") + 1
    assert meter.products == [(2.0 * 6 * 4 * 5, 4.0 * (24 + 20 + 30), 6, 7.0)]
    assert [times for _, times in meter.passes][-1] == 1.0


def test_what_depends_on_values_is_refused_or_assumed() -> None:
    """A mask is taken for full and ids for all different; a number from an activation is an error with the way out."""
    x = torch.empty(4, device="meta")
    with torch.inference_mode(), Meter():
        assert bool((x > 0).all()) is True
        values, inverse = torch.unique(x.long(), return_inverse=True)
        assert (values.shape, inverse.shape) == ((4,), (4,))
        with pytest.raises(
            UserError, match="cannot be planned without them. Remedy: start `zotune train` with --steps 5"
        ):
            float(x.sum())


def test_a_priced_direction_counts_what_would_be_drawn() -> None:
    """Every number of a dense one, the factors of a low-rank one, rows alone where rows are asked for."""
    matrix = Target("w", torch.empty(6, 5, device="meta"))
    vector = Target("b", torch.empty(7, device="meta"))
    key = Key(0, 0)
    dense, thin = Priced(Dense()), Priced(LowRank(2, 3))
    assert dense.block(matrix, key, 10, 25).shape == (15,) and dense.drawn == 15
    assert dense.rows(matrix, key, torch.zeros(4, device="meta")).shape == (4, 5) and dense.drawn == 15 + 20
    assert len(dense.add(vector, key, 0, vector.data, [1.0, -1.0])) == 2 and dense.drawn == 35 + 7
    assert dense.factors(matrix, key) is None and thin.factors(vector, key) is None and thin.drawn == 0
    found = thin.factors(matrix, key)
    assert found is not None and (found.u.shape, found.v.shape) == ((6, 2), (5, 2)) and thin.drawn == 22
    thin.times = 3.0
    thin.factors(matrix, key)
    assert thin.drawn == 22 + 66
