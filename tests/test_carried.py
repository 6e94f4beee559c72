"""What is carried from step to step: every part gets its own back, and sums that wait are made whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.models import batch_for, loss, same_bits, tiny, train

from zotune.carried import collected, handed_back, not_folded
from zotune.errors import RunError
from zotune.noise import Key


def parts(optimizer: Any) -> tuple[Any, Any, Any]:
    return optimizer.direction, optimizer.rule, optimizer.estimator


@pytest.mark.parametrize(
    ("method", "options", "named"),
    [
        ("mezo", {}, set()),
        ("mezo", {"moments": "momentum"}, {"rule"}),
        ("mezo", {"feedback": "residual"}, {"estimator"}),
        ("hizoo", {}, {"direction"}),
        ("lozo_m", {"fold_every": 3}, {"rule", "pending"}),
    ],
)
def test_each_part_gets_its_own_back(method: str, options: dict[str, Any], named: set[str]) -> None:
    """Names say which part a tensor is of; handed to another optimizer's parts they are there again, bit for bit."""
    optimizer, other = (train(method, tiny("llama"), **options) for _ in range(2))
    optimizer.step(loss, batch_for("llama"))
    found = collected(*parts(optimizer), optimizer.perturber.pending, 0)
    assert {name.partition("/")[0] for name in found} == named
    left, halvings = handed_back(found, *parts(other))
    assert halvings == 0 and set(left) == set(optimizer.perturber.pending)
    pending = not_folded(left, other.perturber, other.direction, Key(other.seed, 0))
    again = collected(*parts(other), pending, 0)
    assert same_bits(found, again)


def test_halvings_are_counted() -> None:
    """How often eps was halved stands there once it was."""
    optimizer = train("mezo", tiny("llama"))
    assert not collected(*parts(optimizer), {}, 0)
    assert handed_back(collected(*parts(optimizer), {}, 2), *parts(optimizer)) == ({}, 2)


def test_a_name_of_no_part() -> None:
    """Refused with its name: a snapshot or state may come from anywhere."""
    with pytest.raises(RunError, match="'x' is carried by no method. Remedy"):
        handed_back({"x": torch.zeros(1)}, *parts(train("mezo", tiny("llama"))))


@pytest.mark.parametrize("blocks", [None, "cycle"])
def test_what_is_not_folded_is_the_same_matrix(blocks: str | None) -> None:
    """The left factors travel, the right ones are drawn again, also of a tensor that rested in the last step."""
    optimizer = train("lozo", tiny("llama"), fold_every=3, lr=1e-2, blocks=blocks)
    for _ in range(2):
        optimizer.step(loss, batch_for("llama"))
    left = {name: factors.u for name, factors in optimizer.perturber.pending.items()}
    found = not_folded(left, optimizer.perturber, optimizer.direction, Key(optimizer.seed, optimizer.steps - 1))
    assert found.keys() == optimizer.perturber.pending.keys() != set()
    for name, factors in optimizer.perturber.pending.items():
        assert torch.equal(found[name].u, factors.u) and torch.equal(found[name].v, factors.v)
        assert found[name].scale == factors.scale == 1.0
