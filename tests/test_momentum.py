"""Momentum as a rule: its recurrence, its low-rank form, its state and memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests import models
from tests.models import Weights, flat, normals, of, same_bits, target_of, weights

from zotune.direction import Dense
from zotune.errors import ConfigError
from zotune.estimate import Probe, TwoSided
from zotune.methods import LoZOM
from zotune.momentum import Momentum
from zotune.noise import Key, noise
from zotune.optimizer import ZerothOrder

one_thread = models.one_thread


def start() -> Weights:
    """A matrix and a vector in float64."""
    return Weights(a=normals((6, 5), 2, torch.float64), b=normals(7, 1, torch.float64))


def function(joined: torch.Tensor) -> torch.Tensor:
    """A loss that is no polynomial."""
    return joined.cos().sum()


def heavy(model: Weights, beta: float, weight: float, **options: Any) -> ZerothOrder:
    """Momentum over dense directions, of which nothing is low rank."""
    return ZerothOrder(
        model, direction=Dense(), estimator=TwoSided(1e-2), rule=Momentum(beta, weight), seed=3, **options
    )


def test_the_declared_memory_is_what_is_kept() -> None:
    """rank numbers per row of a matrix and the step of their basis, one per element of a vector."""
    optimizer = LoZOM(start(), lr=0.01, eps=1e-2, rank=2)
    optimizer.step(of(function), {})
    kept = optimizer.rule.state()
    assert {name: m.numel() for name, m in kept.items()} == {"a": 12, "a/step": 1, "b": 7}
    assert optimizer.rule.state_elements(optimizer.perturber.targets()) == 20


@pytest.mark.parametrize("beta", [-0.1, 1.0, float("nan")])
def test_an_impossible_momentum_is_refused(beta: float) -> None:
    """Outside [0, 1) the average has no meaning."""
    with pytest.raises(ConfigError, match="momentum must be in .*Remedy"):
        LoZOM(start(), beta=beta)


def test_low_rank_momentum_moves_whole_matrices() -> None:
    """So that blocks of a schedule never part one; a dense one can move in part. No momentum at all is a choice."""
    assert Momentum(0.0, 1.0, rank=2).by_factors and not Momentum(0.0, 1.0).by_factors


def test_a_matrix_that_rested_is_projected_from_where_it_last_moved() -> None:
    """Moved in steps 0 and 5 of windows of two: from the basis of window 0 to that of window 2, in one go; 1e-13."""
    optimizer = LoZOM(start(), eps=1e-2, beta=0.8, rank=3, interval=2, normalize="none", seed=6)
    target, direction = target_of(optimizer, "a"), optimizer.direction
    for step in (0, 5):
        optimizer.rule.change(target, direction, [Probe(Key(6, step), 2.0, (1.0, 1.0))], 0.1)
    u, v = (
        [part(direction.factors(target, Key(6, step))) for step in (0, 5)] for part in (lambda f: f.u, lambda f: f.v)
    )
    expected = 0.8 * (0.4 * u[0]) @ v[0].T @ v[1] / 5 + 0.4 * u[1]
    torch.testing.assert_close(optimizer.rule.state()["a"], expected, rtol=0, atol=1e-13)
    assert int(optimizer.rule.state()["a/step"]) == 5


@pytest.mark.parametrize(("beta", "weight"), [(0.9, 1.0), (0.9, 0.1), (0.0, 1.0)])
def test_dense_momentum_is_the_recurrence(beta: float, weight: float) -> None:
    """M <- beta M + weight coef z and theta <- (1 - lr wd) theta - lr M, over five steps: to 1e-13, decay included."""
    model, lr, decay = start(), 0.01, 0.5
    theta, m = flat(model), torch.zeros(37, dtype=torch.float64)
    optimizer = heavy(model, beta, weight, lr=lr, weight_decay=decay)
    keep = torch.tensor([1 - lr * decay] * 30 + [1.0] * 7, dtype=torch.float64)  # the vector does not decay
    for step in range(5):
        optimizer.step(of(function), {})
        z = torch.cat([noise("gaussian", Key(3, step), name, 0, size).double() for name, size in (("a", 30), ("b", 7))])
        slope = float(function(theta + 1e-2 * z) - function(theta - 1e-2 * z)) / 2e-2
        m = beta * m + weight * slope * z
        theta = keep * theta - lr * m
        torch.testing.assert_close(flat(model), theta, rtol=0, atol=1e-13)
    assert {name: kept.numel() for name, kept in optimizer.rule.state().items()} == {"a": 30, "b": 7}
    assert optimizer.rule.state_elements(optimizer.perturber.targets()) == 37


def test_a_state_that_was_saved_goes_on() -> None:
    """Three steps, a state, two more: the same bits as from the state; what was taken back is a copy."""
    one, other = heavy(start(), 0.9, 1.0, lr=0.01), heavy(start(), 0.9, 1.0, lr=0.01)
    for _ in range(3):
        one.step(of(function), {})
    other.model.load_state_dict(one.model.state_dict())
    other.load_state_dict(one.state_dict())
    for optimizer in (one, other):
        for _ in range(2):
            optimizer.step(of(function), {})
    assert same_bits(weights(one.model), weights(other.model))
    assert one.rule.state()["a"].data_ptr() != other.rule.state()["a"].data_ptr()


def test_a_step_of_length_zero_keeps_minus_zeros() -> None:
    """With lr 0 the momentum grows and no weight changes a bit."""
    model = Weights(a=torch.full((5, 4), -0.0), b=torch.full((3,), -0.0))
    before, optimizer = weights(model), heavy(model, 0.9, 1.0, lr=0.0)
    for _ in range(2):
        optimizer.step(of(lambda theta: theta.sum()), {})
    assert same_bits(weights(model), before) and float(optimizer.rule.state()["a"].abs().min()) > 0
