"""Closures: their loss as a tensor, and one sentence for what is none."""

from __future__ import annotations

import pytest
import torch
from tests.models import Weights, normals, same_bits, train, weights

from zotune.closure import as_objective
from zotune.errors import UserError


def test_a_loss_is_a_tensor() -> None:
    """A tensor stays what it is, a number is float64; what the objective is given is not passed on."""
    model, loss = torch.nn.Linear(1, 1), torch.tensor([1.0, 2.0])
    assert as_objective(lambda: loss)(model, None) is loss
    found = as_objective(lambda scale=2: 0.1 * scale)(model, None)
    assert found.dtype == torch.float64 and found.shape == () and float(found) == 0.2


@pytest.mark.parametrize(
    ("closure", "said"),
    [
        (lambda: "x", "the closure gives 'x', no loss. Remedy: a number or a tensor"),
        (lambda: None, "the closure gives None, no loss"),
        (lambda model, batch: 1.0, r"called without arguments; this one wants some. Remedy: step\(objective, batch\)"),
    ],
)
def test_what_is_no_closure(closure: object, said: str) -> None:
    """Is told so by a step, and nothing has changed."""
    model = Weights(a=normals((6, 5), 2))
    before = weights(model)
    with pytest.raises(UserError, match=said):
        train("mezo", model, coverage=False).step(closure)
    assert same_bits(weights(model), before)
