"""A weight that is not on the device: its shape can be asked, its values cannot."""

from __future__ import annotations

import pytest
import torch
from tests import models
from tests.engines.blocks import deep, squared
from tests.models import train

from zotune.engines.away import Away
from zotune.engines.offload import Offload
from zotune.errors import UserError


def test_a_weight_that_is_away_cannot_be_read() -> None:
    """Its shape can be asked; a model that uses a block's weight outside that block's forward says so."""
    model = deep(2, 8)
    offload = Offload(model)
    away = offload.away["blocks.0.linear.weight"]
    assert isinstance(away, Away) and (away.shape, away.dtype, away.numel()) == ((8, 8), torch.float32, 64)
    for use in (lambda: away + 1, lambda: away.reshape(-1), lambda: float(away.sum())):
        with pytest.raises(UserError, match=r"blocks.0.linear.weight is used outside.* Remedy: "):
            use()
    optimizer = train("mezo", model, offload=offload)
    with pytest.raises(UserError, match="used outside the forward of its block"):
        optimizer.step(
            lambda m, batch: squared(m, batch) + m.blocks[1].linear.weight.sum(), {"x": models.normals((4, 8), 1)}
        )


def test_any_use_of_its_values_names_it() -> None:
    """By a function, a method, an operator, in place, as a second argument: always the weight's own name."""
    away = Away("block.weight", torch.zeros(3, 2, dtype=torch.bfloat16), torch.device("meta"))
    x = torch.ones(2, 2)
    for use in (
        lambda: torch.nn.functional.linear(x, away), lambda: x @ away.t(), lambda: away.clone(), lambda: away[0],
        lambda: away.add_(1), lambda: torch.cat((away, away)), lambda: away.tolist(), lambda: away == away,
    ):  # fmt: skip
        with pytest.raises(UserError, match="is used outside the forward of its block.* Remedy: .* --offload left out"):
            use()
    with pytest.raises(UserError, match="^block.weight is used"):
        x.mul(away)


def test_what_can_be_asked() -> None:
    """Shape, strides, dtype, and the device to which it will come; it wants no gradient."""
    like = torch.zeros(2, 3, dtype=torch.float16).t()
    away = Away("w", like, torch.device("meta"))
    assert (away.shape, away.stride(), away.dtype, away.device.type) == ((3, 2), (1, 3), torch.float16, "meta")
    assert (away.dim(), away.numel(), away.size(0), away.is_floating_point()) == (2, 6, 3, True)
    assert not away.requires_grad and away.known_as == "w"
