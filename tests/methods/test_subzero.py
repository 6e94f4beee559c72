"""SubZero and SubZero+ against their papers, full rank against MeZO's law, and the reshaped form."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tests import models
from tests.models import Weights, batch_for, flat, loss, normals, of, target_of, tiny, weights
from torch import Tensor

from zotune.errors import ConfigError
from zotune.methods import SubZero
from zotune.noise import Key, Purpose, noise

one_thread = models.one_thread
GRID = torch.arange(1, 38, dtype=torch.float64) / 8


def function(joined: Tensor) -> Tensor:
    return (joined.cos() * GRID).sum()


def start() -> Weights:
    return Weights(a=normals((6, 5), 2, torch.float64), b=normals(7, 1, torch.float64))


def signed_qr(drawn: Tensor) -> Tensor:
    q, r = torch.linalg.qr(drawn.double())
    return q @ torch.diag(r.diagonal().sign())


def bases(window: int, m: int, n: int, r: int) -> tuple[Tensor, Tensor]:
    drawn = noise("gaussian", Key(3, window, 0, Purpose.BASIS), "a", 0, (m + n) * r)
    return signed_qr(drawn[: m * r].view(m, r)), signed_qr(drawn[m * r :].view(n, r))


@pytest.mark.parametrize("queries", [1, 2])
@pytest.mark.parametrize("sides", [1, 2])
@pytest.mark.parametrize(("reshape", "m", "n"), [(False, 6, 5), (True, 5, 6)])
@pytest.mark.parametrize("rank", [2, 9])
def test_five_steps_equal_the_paper(queries: int, sides: Any, reshape: bool, m: int, n: int, rank: int) -> None:
    """sqrt(m n) / r U Z V' with bases new every 2 steps, on either number of sides, also with a rank above a side."""
    model, lr, eps, r = start(), 1e-3, 1e-2, min(rank, 5)
    theta = flat(model)
    optimizer = SubZero(
        model, lr=lr, eps=eps, rank=rank, interval=2, sides=sides, reshape=reshape, queries=queries, seed=3
    )
    for step in range(5):
        (u, v), change = bases(step // 2, m, n, r), torch.zeros(37, dtype=torch.float64)
        for query in range(queries):
            core = noise("gaussian", Key(3, step, query), "a", 0, r * r).view(r, r).double()
            vector = noise("gaussian", Key(3, step, query), "b", 0, 7).double()
            z = torch.cat([(math.sqrt(30) / r * u @ core @ v.T).flatten(), vector])
            behind = theta - eps * z if sides == 2 else theta
            change = change + float(function(theta + eps * z) - function(behind)) / (sides * eps * queries) * z
        theta = theta - lr * change
        optimizer.step(of(function), {})
        torch.testing.assert_close(flat(model), theta, rtol=0, atol=1e-11)


def test_subzero_plus_equals_its_paper() -> None:
    """Adam on the r x r core with forward differences; new moments with new bases at step 3; vectors by vector_lr."""
    model, lr, eps, r, q, vector_lr = start(), 0.02, 1e-2, 2, 4, 1e-3
    theta = flat(model)
    optimizer = SubZero(model, lr, eps, rank=r, interval=3, sides=1, adam=True, queries=q, vector_lr=vector_lr, seed=3)
    for step in range(5):
        u, v = bases(step // 3, 6, 5, r)
        g, gone = torch.zeros(r, r, dtype=torch.float64), step % 3
        if gone == 0:
            moment, square = torch.zeros_like(g), torch.zeros_like(g)
        vector = torch.zeros(7, dtype=torch.float64)
        for query in range(q):
            core = noise("gaussian", Key(3, step, query), "a", 0, r * r).view(r, r).double()
            z = noise("gaussian", Key(3, step, query), "b", 0, 7).double()
            moved = theta + eps * torch.cat([(math.sqrt(30) / r * u @ core @ v.T).flatten(), z])
            rho = float(function(moved) - function(theta)) / eps
            g, vector = g + rho * core / q, vector + rho * z / q
        moment, square = 0.9 * moment + 0.1 * g, 0.95 * square + 0.05 * g * g
        adam = moment / (1 - 0.9 ** (gone + 1)) / ((square / (1 - 0.95 ** (gone + 1))).sqrt() + 1e-8)
        theta = theta - torch.cat([lr * (u @ adam @ v.T).flatten(), vector_lr * vector])
        optimizer.step(of(function), {})
        torch.testing.assert_close(flat(model), theta, rtol=0, atol=1e-10)


def test_full_rank_has_the_law_of_mezo() -> None:
    """For a square matrix of full rank, vec(Z) -> vec(U Z V') is orthogonal: the covariance is exactly the identity.

    Drawn entries agree: over 800 steps in 40 windows their covariance is I within 5 standard errors.
    """
    model = Weights(a=normals((4, 4), 2, torch.float64))
    optimizer = SubZero(model, rank=4, interval=20)
    target = target_of(optimizer, "a")
    direction: Any = optimizer.direction
    u, v = direction.bases(target, Key(0, 0))
    map_of_core = torch.kron(u, v) * math.sqrt(16) / 4
    torch.testing.assert_close(map_of_core @ map_of_core.T, torch.eye(16, dtype=torch.float64), rtol=0, atol=1e-13)
    z = torch.stack([direction.block(target, Key(0, step), 0, 16) for step in range(800)])
    core = torch.stack([direction.core(target, Key(0, step)).double().flatten() for step in range(20)])
    torch.testing.assert_close(z[:20], core @ map_of_core.T, rtol=0, atol=1e-12)
    products = z.unsqueeze(2) * z.unsqueeze(1)
    bound = 5 * products.std(0) / 800**0.5
    assert bool(((products.mean(0) - torch.eye(16)).abs() <= bound).all())


def test_a_window_folded_at_once_is_the_same_run() -> None:
    """fold_every of a whole window changes rounding alone, with SGD and with Adam."""
    for more in ({}, {"adam": True, "sides": 1, "queries": 2}):
        ends = []
        for fold_every in (1, 4):
            model = start()
            optimizer = SubZero(model, lr=1e-3, eps=1e-2, rank=2, interval=4, fold_every=fold_every, **more)
            for _ in range(10):
                optimizer.step(of(function), {})
            optimizer.fold()
            ends.append(flat(model))
        torch.testing.assert_close(ends[1], ends[0], rtol=0, atol=1e-11)


@pytest.mark.parametrize("more", [{"reshape": True}, {"adam": True, "sides": 1}])
def test_the_other_forms_continue_from_a_saved_state(more: dict[str, Any]) -> None:
    """Four steps, state and weights to new objects, four more: the bits of eight, across a refresh."""
    batch, ends = batch_for("llama"), []
    for cut in (8, 4):
        model = tiny("llama", torch.bfloat16)
        optimizer = SubZero(model, lr=1e-2, eps=1e-2, rank=3, interval=6, queries=2, seed=5, **more)
        for _ in range(cut):
            optimizer.step(loss, batch)
        if cut < 8:
            state = optimizer.state_dict()
            optimizer = SubZero(model, lr=0.0, eps=1e-2, rank=3, interval=6, queries=2, **more)
            optimizer.load_state_dict(state)
            for _ in range(4):
                optimizer.step(loss, batch)
        ends.append(weights(model))
        assert optimizer.evaluator.forwards == cut * (4 if "reshape" in more else 3)
    assert models.same_bits(*ends)


def test_the_declared_memory_is_what_is_kept() -> None:
    """Bases of the window, both keys' cores and vectors, Adam's two moments, and where they began."""
    optimizer = SubZero(start(), eps=1e-2, rank=2, sides=1, adam=True, queries=2)
    targets = optimizer.perturber.targets()
    assert optimizer.rule.state_elements(targets) == 8 + 2
    optimizer.step(of(function), {})
    assert optimizer.direction.state_elements(targets) == 2 * (6 + 5) + 2 * (2 * 2 + 7)
    assert sum(m.numel() for m in optimizer.rule.state().values()) == 8 + 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"rank": 0},
        {"interval": 0},
        {"sides": 3},
        {"beta1": 1.0},
        {"beta2": -0.1},
        {"vector_lr": -1e-7},
        {"adam": True, "reshape": True},
        {"queries": 0},
    ],
)
def test_wrong_arguments_are_refused(wrong: dict[str, Any]) -> None:
    """Each with its remedy."""
    with pytest.raises(ConfigError, match="Remedy"):
        SubZero(start(), **wrong)
