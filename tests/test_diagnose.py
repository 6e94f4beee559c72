"""Naming the module where numbers stop being finite."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

import pytest
import torch
from tests.models import batch_for, loss, seeded, tiny
from torch import Tensor, nn

from zotune.diagnose import first_non_finite


class Wrap(nn.Module):
    """Gives its input back inside a container, with a chosen value added."""

    def __init__(self, add: float, container: str) -> None:
        super().__init__()
        self.add, self.container = add, container

    def forward(self, x: Any) -> Any:
        while not isinstance(x, Tensor):
            x = next(iter(x.values())) if isinstance(x, dict) else x[0]
        y = x + self.add
        return {"tensor": y, "tuple": (y, None, 3), "list": [[y]], "dict": {"hidden": y}}[self.container]


@pytest.mark.parametrize("container", ["tensor", "tuple", "list", "dict"])
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_the_first_module_to_complete_is_named(container: str, bad: float) -> None:
    """Not the later ones that inherit the value, nor the model around them; outputs may be nested."""
    model = nn.Sequential(
        OrderedDict(fine=Wrap(0.0, container), culprit=Wrap(bad, container), after=Wrap(0.0, container))
    )
    assert first_non_finite(model, lambda: model(torch.ones(2))) == "culprit (Wrap)"


def test_a_real_model_with_one_bad_weight() -> None:
    """An infinite weight in the second block's down projection is found there, and no hook is left behind."""
    model, batch = tiny("llama"), batch_for("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = math.inf
        found = first_non_finite(model, lambda: loss(model, batch))
    assert found == "model.layers.1.mlp.down_proj (Linear)"
    assert not any(module._forward_hooks for module in model.modules())


def test_hooks_are_removed_when_the_forward_fails() -> None:
    """An error inside the forward pass leaves the model as it was."""
    model = seeded(lambda: nn.Linear(2, 2))
    with pytest.raises(RuntimeError):
        first_non_finite(model, lambda: model(torch.ones(3)))
    assert not model._forward_hooks


def test_a_loss_that_fails_alone_is_laid_at_the_objectives_door() -> None:
    """When every module's output is finite the objective is named; integers and the model itself can be meant."""
    model = seeded(lambda: nn.Linear(2, 2))
    assert "the objective" in first_non_finite(model, lambda: model(torch.ones(2)) / 0)
    assert "the objective" in first_non_finite(nn.Identity(), lambda: nn.Identity()(torch.tensor([1])))
    with torch.no_grad():
        model.weight.fill_(math.nan)
    assert first_non_finite(model, lambda: model(torch.ones(2))) == "the model (Linear)"
