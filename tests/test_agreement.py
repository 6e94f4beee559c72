"""What counts as the same losses: rounding does, another weight does not."""

from __future__ import annotations

import math

import pytest
import torch
from tests.models import train
from torch import nn

from zotune.agreement import compare, disagreement, widest_rounding
from zotune.lazy import LaneUnsupported

EXPECTED = torch.tensor([[1.0, 2.0], [1.5, 2.5]], dtype=torch.float64)


def test_rounding_is_no_disagreement() -> None:
    """Up to 64 spacings of the dtype, or a fiftieth of what separates the points; beyond it the largest error."""
    rounding = 32 * torch.finfo(torch.float32).eps
    assert disagreement(EXPECTED + rounding, EXPECTED, torch.float32) == 0
    assert disagreement(EXPECTED + 0.004, EXPECTED, torch.float32) == 0  # they lie 0.25 from their mean
    assert disagreement(EXPECTED + 0.006, EXPECTED, torch.float32) == pytest.approx(0.006)
    assert disagreement(EXPECTED.flip(0), EXPECTED, torch.float32) == pytest.approx(0.5)
    flat = torch.ones(2, 2, dtype=torch.float64)
    assert disagreement(flat + 1e-3, flat, torch.bfloat16) == 0 < disagreement(flat + 1e-3, flat, torch.float32)


def test_others_that_are_finite_differ_by_all() -> None:
    """The same infinite losses are compared by the rest."""
    found, other = EXPECTED.clone(), EXPECTED.clone()
    found[0, 1] = math.inf
    assert disagreement(found, EXPECTED, torch.float32) == math.inf
    other[0, 1] = math.nan
    assert disagreement(found, other, torch.float32) == 0


def test_the_reason_is_said() -> None:
    """By how much, or that others are finite."""
    compare(EXPECTED, EXPECTED, torch.float32)
    with pytest.raises(LaneUnsupported, match="differ from single evaluations by 0.1 on the first batch"):
        compare(EXPECTED + 0.1, EXPECTED, torch.float32)
    with pytest.raises(LaneUnsupported, match="differ in which losses are finite"):
        compare(EXPECTED * math.nan, EXPECTED, torch.float32)


def test_the_widest_rounding_in_scope() -> None:
    """Of float32 and bfloat16 it is bfloat16's."""
    model = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2).bfloat16()])
    assert widest_rounding(train("mezo", model).perturber) == torch.bfloat16
    assert widest_rounding(train("mezo", model, scope=["0.weight"]).perturber) == torch.float32
