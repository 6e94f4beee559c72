"""The update rule on one block: formula, decay, several probes, and steps of length zero."""

from __future__ import annotations

import pytest
import torch
from tests.models import normals

from zotune.direction import Dense, Target
from zotune.estimate import Probe
from zotune.noise import Key, noise
from zotune.rule import Block, Sgd

PROBES = [Probe(Key(1, 0, query), coef, (0.0, 0.0)) for query, coef in enumerate((0.5, -2.0, 0.0))]


def block(weight: torch.Tensor, start: int = 0, stop: int | None = None) -> Block:
    direction, target = Dense(), Target("w", weight)
    return Block(direction, target, start, weight.view(-1)[start:stop])


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_sgd_is_its_formula(decay: float) -> None:
    """`(1 - lr wd) w - lr sum_q coef_q z_q` in float64, for a block in the middle of the tensor."""
    weight = normals(300, 1, torch.float64)
    z = [noise("gaussian", probe.key, "w", 40, 200).double() for probe in PROBES]
    expected = (1 - 0.01 * decay) * weight[40:200] - 0.01 * (0.5 * z[0] - 2.0 * z[1])
    torch.testing.assert_close(Sgd().update(block(weight, 40, 200), PROBES, 0.01, decay), expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_sum_is_wide(dtype: torch.dtype) -> None:
    """16-bit weights are updated in float32 and handed to the store unrounded; wider ones keep their dtype."""
    value = Sgd().update(block(normals(64, 1, dtype)), PROBES, 1e-4, 0.0)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    if dtype in (torch.bfloat16, torch.float16):
        assert not torch.equal(value.to(dtype).float(), value)


@pytest.mark.parametrize(("lr", "probes"), [(0.0, PROBES), (0.1, [Probe(Key(1, 0), 0.0, (1.0, 1.0))])])
def test_a_step_of_length_zero_keeps_every_bit(lr: float, probes: list[Probe]) -> None:
    """Minus zero included: adding zero times z would turn it into plus zero. With lr 0 nothing decays either."""
    weight = torch.tensor([-0.0, 0.0, 1.0, -1e-40])
    value = Sgd().update(block(weight), probes, lr, 0.5 if lr == 0 else 0.0)
    assert torch.equal(value.view(torch.int32), weight.view(torch.int32))


def test_the_rule_does_not_write_the_weights() -> None:
    """Writing is the store's business: the block's weights are as before."""
    weight = normals(64, 1)
    before = weight.clone()
    Sgd().update(block(weight), PROBES, 0.1, 0.1)
    assert torch.equal(weight, before)
