"""ZO-Muon against its paper, what its iteration does to singular values, and odd shapes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests import models
from tests.models import Weights, flat, normals, of, same_bits, weights
from torch import Tensor

from zotune.errors import ConfigError
from zotune.methods import ZOMuon
from zotune.methods.zo_muon import newton_schulz
from zotune.noise import Key, Purpose, noise

one_thread = models.one_thread
GRID = torch.arange(1, 200, dtype=torch.float64) / 50


def function(joined: Tensor) -> Tensor:
    return (joined.cos() * GRID[: len(joined)]).sum()


def polynomial(sigma: Tensor) -> Tensor:
    """What five steps do to a singular value."""
    for _ in range(5):
        sigma = 3.4445 * sigma - 4.7750 * sigma**3 + 2.0315 * sigma**5
    return sigma


def sign_by_svd(g: Tensor) -> Tensor:
    """The iteration through its effect on singular values: another way to the same matrix."""
    u, sigma, v = torch.linalg.svd(g, full_matrices=False)
    return u @ torch.diag(polynomial(sigma / (g.norm() + 1e-7))) @ v


@pytest.mark.parametrize("shape", [(4, 30), (30, 4), (5, 5), (1, 9), (9, 1)])
def test_the_iteration_sets_singular_values_near_one(shape: tuple[int, int]) -> None:
    """It acts on singular values alone, as the polynomial says, and well-conditioned ones land in 0.65 to 1.25."""
    g = normals(shape, 7, torch.float64)
    found = newton_schulz(g)
    torch.testing.assert_close(found, sign_by_svd(g), rtol=0, atol=1e-10)
    if 5 not in shape:
        values = torch.linalg.svdvals(found)
        assert 0.65 < float(values.min()) and float(values.max()) < 1.25
    assert float(newton_schulz(torch.zeros(shape)).abs().max()) == 0


@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize(("m", "n", "rank"), [(8, 6, 3), (3, 9, 5), (12, 2, 4)])
def test_five_steps_equal_the_paper(queries: int, m: int, n: int, rank: int) -> None:
    """One P per window of 2 steps for all queries, forward differences, the sign of the r x n sum; vectors apart."""
    lr, eps, vector_lr, r = 0.05, 1e-2, 1e-3, min(rank, m)
    model = Weights(a=normals((m, n), 2, torch.float64), b=normals(7, 1, torch.float64))
    theta = flat(model)
    optimizer = ZOMuon(model, lr, eps, rank=rank, interval=2, vector_lr=vector_lr, queries=queries, seed=3)
    for step in range(5):
        q, upper = torch.linalg.qr(
            noise("gaussian", Key(3, step // 2, 0, Purpose.BASIS), "a", 0, m * r).view(m, r).double()
        )
        p, g, vector = q @ torch.diag(upper.diagonal().sign()), torch.zeros(r, n).double(), torch.zeros(7).double()
        for query in range(queries):
            psi = noise("gaussian", Key(3, step, query), "a", 0, r * n).view(r, n).double()
            z = noise("gaussian", Key(3, step, query), "b", 0, 7).double()
            moved = theta + eps * torch.cat([(p @ psi).flatten(), z])
            slope = float(function(moved) - function(theta)) / (eps * queries)
            g, vector = g + slope * psi, vector + slope * z
        theta = theta - torch.cat([lr * (p @ sign_by_svd(g)).flatten(), vector_lr * vector])
        optimizer.step(of(function), {})
        torch.testing.assert_close(flat(model), theta, rtol=0, atol=1e-9)


def test_a_large_psi_is_drawn_from_the_same_stream() -> None:
    """Above the size that is kept for the step, too, Psi is the noise of its key, and so is a large vector's z."""
    model = Weights(a=normals((16, 2000), 2), b=normals(20_000, 1))
    optimizer = ZOMuon(model, rank=16, queries=1)
    direction: Any = optimizer.direction
    matrix, vector = optimizer.perturber.targets()
    assert torch.equal(direction.psi(matrix, Key(0, 3)).flatten(), noise("gaussian", Key(0, 3), "a", 0, 32_000))
    assert torch.equal(direction.block(vector, Key(0, 3), 5, 19_000), noise("gaussian", Key(0, 3), "b", 5, 19_000))


def test_vectors_rest_where_the_learning_rate_is_zero() -> None:
    """vector_lr does not follow a schedule, but a step of lr 0 changes nothing, and vector_lr 0 leaves vectors."""
    for lr, vector_lr, moving in ((0.0, 1e-3, []), (1e-2, 0.0, ["a"]), (1e-2, 1e-3, ["a", "b"])):
        model = Weights(a=normals((6, 5), 2), b=normals(7, 1))
        before = weights(model)
        optimizer = ZOMuon(model, lr=lr, eps=1e-2, rank=2, vector_lr=vector_lr)
        optimizer.step(of(lambda joined: joined.square().sum()), {})
        after = weights(model)
        moved = [name for name in before if not same_bits({"w": before[name]}, {"w": after[name]})]
        assert moved == moving


def test_the_declared_memory_is_what_is_kept() -> None:
    """P, and four keys of small Psi and vectors."""
    optimizer = ZOMuon(Weights(a=normals((6, 5), 2), b=normals(7, 1)), rank=2)
    optimizer.step(of(lambda theta: theta.square().sum()), {})
    assert optimizer.direction.state_elements(optimizer.perturber.targets()) == 2 * 6 + 4 * (2 * 5 + 7)


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"interval": 0}, {"vector_lr": -1.0}, {"queries": 0}])
def test_wrong_arguments_are_refused(wrong: dict[str, Any]) -> None:
    """Each with its remedy."""
    with pytest.raises(ConfigError, match="Remedy"):
        ZOMuon(Weights(a=normals((6, 5), 2)), **wrong)
