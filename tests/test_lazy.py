"""The stand-in for a parameter: what it answers, what it refuses, and when its noise is drawn."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests import models
from tests.lanes import POINTS, ROWS, SHAPES, Holder, ids, x
from torch import Tensor, nn

from zotune.direction import Dense
from zotune.errors import UserError
from zotune.estimate import Point
from zotune.lane_rules import RULES
from zotune.lazy import Derived, Lanes, LaneUnsupported, Perturbed, writes
from zotune.noise import Key
from zotune.perturb import Perturber

one_thread = models.one_thread


WRITES: dict[str, Callable[[Any], Any]] = {
    "mul_": lambda m: m.matrix.mul_(0.5),
    "copy_": lambda m: m.vector.copy_(torch.ones(4)),
    "setitem": lambda m: m.matrix.__setitem__(0, 1.0),
    "augmented": lambda m: m.matrix.__imul__(2.0),
    "normal_": lambda m: nn.init.normal_(m.matrix),
    "zero_ inside no_grad": lambda m: m.scalar.zero_(),
    "max_norm": lambda m: F.embedding(ids(), m.table, max_norm=1.0),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("points", [POINTS[:1], POINTS])
def test_writing_a_parameter_in_the_forward_pass_is_refused(write: str, points: list[Point]) -> None:
    """The write would be lost or kept by chance: the error names the parameter, and its bits are as before."""
    holder = Holder()
    made = Perturber(holder, list(SHAPES), Dense())
    before = models.weights(holder)
    with torch.random.fork_rng(), torch.no_grad(), made.at(*points, rows=ROWS):
        with pytest.raises(UserError, match="matrix|vector|scalar|table") as caught:
            WRITES[write](holder)
    assert "Remedy" in str(caught.value)
    assert models.same_bits(models.weights(holder), before)


def test_which_operations_write() -> None:
    """A trailing underscore, the augmented assignments and item assignment; not `__invert__` or `__index__`."""
    tensor = torch.Tensor
    assert all(writes(func) for func in (tensor.add_, tensor.__iadd__, tensor.__imul__, tensor.__setitem__))
    assert not any(writes(func) for func in (tensor.add, tensor.__invert__, tensor.__index__, F.linear))


def test_a_stand_in_answers_questions_without_being_made() -> None:
    """Shape, dtype, device and the like come from the parameter; asking them does not count as using it."""
    holder = Holder()
    made = Perturber(holder, list(SHAPES), Dense())
    with made.at(*POINTS, rows=ROWS) as lanes:
        matrix: Any = holder.matrix
        assert isinstance(matrix, Perturbed) and isinstance(matrix, nn.Parameter)
        assert (matrix.shape, matrix.dtype, matrix.device.type) == (torch.Size((5, 4)), torch.float64, "cpu")
        assert (matrix.dim(), matrix.ndim, matrix.size(1), matrix.numel(), matrix.stride()) == (2, 2, 4, 20, (4, 1))
        assert matrix.is_floating_point() and not matrix.requires_grad and matrix.is_contiguous()
        assert {matrix: 1}[matrix] == 1
        assert not lanes.touched
        assert isinstance(matrix.t().float(), Derived) and lanes.touched == {"matrix"}
    assert isinstance(holder.matrix, nn.Parameter) and not isinstance(holder.matrix, Perturbed)


def test_a_weight_whose_address_was_asked_for_stays_there() -> None:
    """A model's own kernel reads at the address after asking: it finds the perturbed weight, not memory given back."""
    holder = Holder()
    made = Perturber(holder, list(SHAPES), Dense())
    with made.at(POINTS[0], rows=ROWS) as lanes:
        matrix: Any = holder.matrix
        expected = (matrix + 0.0).flatten().tolist()
        address = matrix.data_ptr()
        others = [torch.zeros(5, 4, dtype=torch.float64) for _ in range(8)]  # would be given the same place
        assert list((ctypes.c_double * 20).from_address(address)) == expected != others[0].flatten().tolist()
        assert lanes.touched == {"matrix"}
    with made.at(*POINTS, rows=ROWS), pytest.raises(LaneUnsupported, match="data_ptr on matrix"):
        holder.matrix.data_ptr()


def test_lanes_of_one_key_draw_their_noise_once() -> None:
    """Both sides of a query share z: the direction is asked once for a key, not once for a lane."""
    holder = Holder()
    made = Perturber(holder, list(SHAPES), Dense())
    asked: list[tuple[Key, int]] = []
    inner = made.direction.add

    def count(target: Any, key: Key, start: int, w: Tensor, scales: Any) -> list[Tensor]:
        asked.append((key, len(scales)))
        return inner(target, key, start, w, scales)

    made.direction.add = count  # type: ignore[method-assign]
    with torch.no_grad(), made.at(*POINTS, rows=ROWS):
        F.linear(x(7, 4), holder.matrix)
    assert asked == [(POINTS[0].key, 2), (POINTS[2].key, 2)]


def test_the_rules_are_a_table_that_can_be_replaced() -> None:
    """Without rules every mixed operation is refused: rules come from the table handed in, not from a global."""
    holder = Holder()
    target = Perturber(holder, list(SHAPES), Dense()).targets()[0]
    with pytest.raises(LaneUnsupported, match="no lane rule"):
        F.linear(x(4), Perturbed(target, Lanes(Dense(), POINTS, ROWS)))
    assert isinstance(F.linear(x(4), Perturbed(target, Lanes(Dense(), POINTS, ROWS, RULES))), Tensor)
