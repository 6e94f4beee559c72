"""LoZO-M against its paper with refreshes, its limit LoZO, and windows that are folded at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests import models
from tests.models import Weights, flat, normals, of, target_of

from zotune.methods import LoZO, LoZOM
from zotune.noise import LAWS, Key, Law, Purpose, noise

one_thread = models.one_thread
GRID = torch.arange(1, 38, dtype=torch.float64)


def function(joined: torch.Tensor) -> torch.Tensor:
    return (joined.cos() * GRID).sum()


def start() -> Weights:
    return Weights(a=normals((6, 5), 2, torch.float64), b=normals(7, 1, torch.float64))


def basis(law: Law, window: int, rank: int) -> torch.Tensor:
    return noise(law, Key(6, window, 0, Purpose.BASIS), "a", 0, 5 * rank).view(5, rank).double()


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(("normalize", "scale"), [("none", 1.0), ("rms", 3**-0.5)])
@pytest.mark.parametrize("queries", [1, 2])
def test_eight_steps_equal_the_paper(law: Law, normalize: Any, scale: float, queries: int) -> None:
    """N in the basis of the window, projected at steps 3 and 6; vectors with a moving average; theta to 1e-12."""
    model, lr, eps, rank, nu, beta = start(), 0.003, 1e-2, 3, 3, 0.8
    theta, n, m = flat(model), torch.zeros(6, rank, dtype=torch.float64), torch.zeros(7, dtype=torch.float64)
    optimizer = LoZOM(
        model, lr=lr, eps=eps, beta=beta, rank=rank, interval=nu, law=law, normalize=normalize, seed=6, queries=queries
    )
    for step in range(8):
        v = basis(law, step // nu, rank)
        if step and step % nu == 0:
            n = n @ basis(law, step // nu - 1, rank).T @ v / 5
        n, m = beta * n, beta * m
        for query in range(queries):
            u = scale * noise(law, Key(6, step, query), "a", 0, 6 * rank).view(6, rank).double()
            z = torch.cat([(u @ v.T).flatten(), noise(law, Key(6, step, query), "b", 0, 7).double()])
            slope = float(function(theta + eps * z) - function(theta - eps * z)) / (2 * eps * queries)
            n, m = n + (1 - beta) * slope * u, m + (1 - beta) * slope * z[30:]
        theta = theta - lr * torch.cat([(n @ v.T).flatten(), m])
        optimizer.step(of(function), {})
        torch.testing.assert_close(flat(model), theta, rtol=0, atol=1e-12)


def test_without_momentum_it_is_lozo() -> None:
    """beta 0 gives LoZO's weights with LoZO's lr, whatever the scaling, refreshes included."""
    for normalize in ("none", "rms"):
        ends = []
        for method, more in ((LoZO, {}), (LoZOM, {"beta": 0.0})):
            model = start()
            optimizer = method(model, lr=0.003, eps=1e-2, rank=3, interval=2, normalize=normalize, **more)  # type: ignore
            for _ in range(7):
                optimizer.step(of(function), {})
            ends.append(flat(model))
        torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-13)


def test_a_window_folded_at_once_is_the_same_run() -> None:
    """fold_every of a whole window changes rounding alone, and the pending update stands for the weights meanwhile."""
    ends = []
    for fold_every in (1, 2, 4):
        model = start()
        optimizer = LoZOM(model, lr=0.003, eps=1e-2, rank=2, interval=4, fold_every=fold_every)
        for _ in range(10):
            optimizer.step(of(function), {})
        optimizer.fold()
        ends.append(flat(model))
    torch.testing.assert_close(ends[1], ends[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(ends[2], ends[0], rtol=0, atol=1e-12)


def test_momentum_keeps_its_direction_through_a_refresh() -> None:
    """At rank near the number of columns, the projected momentum still points where it pointed; at rank 1 it cannot."""
    found = []
    for rank in (200, 1):
        model = Weights(a=normals((4, 30), 2, torch.float64))
        optimizer = LoZOM(model, lr=1e-4, eps=1e-2, beta=0.99, rank=rank, interval=1)
        optimizer.step(of(lambda joined: joined.sum()), {})
        target, m = target_of(optimizer, "a"), optimizer.rule.state()["a"]
        v = [optimizer.direction.factors(target, Key(0, step)).v for step in (0, 1)]  # type: ignore[union-attr]
        before, after = (m @ v[0].T).flatten(), (m @ (v[0].T @ v[1] / 30) @ v[1].T).flatten()
        found.append(float(torch.nn.functional.cosine_similarity(before, after, dim=0)))
    assert found[0] > 0.85 > 0.6 > abs(found[1])
