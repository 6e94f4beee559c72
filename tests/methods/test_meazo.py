"""MEAZO against its formula in float64: bias correction, groups, decay, and what its state carries."""

from __future__ import annotations

import pytest
import torch
from tests import models
from tests.models import ROWS, Weights, flat, normals, of
from torch import Tensor

from zotune.errors import ConfigError
from zotune.methods import MEAZO
from zotune.noise import LAWS, Key, Law, noise

one_thread = models.one_thread
SIZES = {"a": 30, "b": 7, "c": 6}


def start() -> Weights:
    return Weights(**{n: normals((6, 5) if n == "a" else SIZES[n], len(n) + SIZES[n], torch.float64) for n in SIZES})


def function(joined: Tensor) -> Tensor:
    return (joined.cos() * torch.arange(1, 44)).sum()


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_five_steps_equal_the_paper(law: Law, queries: int, groups: int) -> None:
    """One v for each group, from its own queries, which leave the other groups alone; theta agrees to 1e-10."""
    model, lr, eps, beta, zeta = start(), 0.03, 1e-2, 0.8, 1e-3
    theta = flat(model)
    optimizer = MEAZO(model, lr, eps, beta=beta, zeta=zeta, groups=groups, law=law, queries=queries, seed=6)
    member = torch.cat([torch.full((size,), i * groups // 3) for i, size in enumerate(SIZES.values())])
    v = [0.0] * groups
    for step in range(1, 6):
        moved = theta.clone()
        for group in range(groups):
            slopes, total = [], torch.zeros_like(theta)
            for query in range(queries):
                key = Key(6, step - 1, query * groups + group)
                u = torch.cat([noise(law, key, name, 0, size) for name, size in SIZES.items()]).double()
                u = u * (member == group)
                slopes.append(float(function(theta + eps * u) - function(theta - eps * u)) / (2 * eps))
                total += slopes[-1] * u / queries
            v[group] = beta * v[group] + (1 - beta) * (sum(slopes) / queries) ** 2
            moved -= lr / ((v[group] / (1 - beta**step)) ** 0.5 + zeta) * total
        theta = moved
        optimizer.step(of(function), {})
        torch.testing.assert_close(flat(model), theta, rtol=0, atol=1e-10)
    assert optimizer.evaluator.forwards == 5 * 2 * queries * groups


def test_the_first_step_is_as_long_as_the_learning_rate() -> None:
    """With one query the first step is -lr sign(slope) u, whatever the loss's unit: the bias correction is right."""
    for factor in (1e-4, 1.0, 1e4):
        model = start()
        before = flat(model)
        MEAZO(model, 0.01, 1e-2, law="rademacher").step(of(lambda theta, f=factor: f * function(theta)), {})
        torch.testing.assert_close((flat(model) - before).abs(), torch.full_like(before, 0.01), rtol=1e-5, atol=0)


def test_the_mean_forgets_and_travels() -> None:
    """v after ten steps is the weighted mean of the squared slopes; a new optimizer takes it over with the state."""
    model = start()
    optimizer = MEAZO(model, 1e-3, 1e-2, beta=0.7)
    slopes = []
    for _ in range(10):
        optimizer.step(of(function), {})
        slopes.append(optimizer.probes[0].coef)
    expected = sum(0.3 * 0.7 ** (9 - i) * slope**2 for i, slope in enumerate(slopes))
    state = optimizer.state_dict()
    assert float(state["zotune"]["carried"]["rule/v"]) == pytest.approx(expected, rel=1e-12)
    other = MEAZO(start(), 1e-3, 1e-2, beta=0.7)
    other.load_state_dict(state)
    assert other.rule.state()["v"].tolist() == [pytest.approx(expected, rel=1e-12)]
    assert int(other.rule.state()["steps"]) == 10


def test_weight_decay_is_not_divided() -> None:
    """A constant loss leaves the decay alone: matrices shrink by 1 - lr wd, though 1 / zeta is huge."""
    model = start()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = MEAZO(model, 0.1, 1e-2, groups=2, weight_decay=0.2)
    optimizer.step(of(lambda theta: theta.sum() * 0 + 0.3), ROWS)
    torch.testing.assert_close(model.a.detach(), before["a"] * (1 - 0.02), rtol=1e-15, atol=0)
    assert torch.equal(model.b.detach(), before["b"])


def test_groups_and_blocks_are_not_combined() -> None:
    """A group of tensors that all rest has the slope 0, which would make its next steps longer; one group is fine."""
    with pytest.raises(ConfigError, match="groups is 2, and blocks cuts the scope.*Remedy"):
        MEAZO(models.tiny("llama"), groups=2, blocks="cycle")
    assert MEAZO(models.tiny("llama"), blocks="cycle").blocks == "cycle"


WRONG = [{"beta": 1.0}, {"beta": -0.1}, {"zeta": 0.0}, {"groups": 0}, {"groups": 4}, {"queries": 0}, {"eps": 0.0}]


@pytest.mark.parametrize("wrong", WRONG)
def test_impossible_arguments_are_refused(wrong: dict[str, float]) -> None:
    """A mean that never forgets, a group without a tensor, no query: each with its remedy."""
    with pytest.raises(ConfigError, match="Remedy"):
        MEAZO(start(), **wrong)
