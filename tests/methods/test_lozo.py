"""LoZO against its paper, the two scalings, windows of V, and models whose linear layers are used transposed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests import models
from tests.models import Weights, batch_for, flat, loss, normals, of, same_bits, tiny, weights

from zotune.methods import LoZO
from zotune.noise import LAWS, Key, Law, Purpose, noise

one_thread = models.one_thread
GRID = torch.arange(1, 38, dtype=torch.float64)


def function(joined: torch.Tensor) -> torch.Tensor:
    return (joined.cos() * GRID).sum()


def start() -> Weights:
    return Weights(a=normals((6, 5), 2, torch.float64), b=normals(7, 1, torch.float64))


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(("normalize", "scale"), [("none", 1.0), ("rms", 3**-0.5)])
def test_seven_steps_equal_the_paper(law: Law, normalize: Any, scale: float) -> None:
    """Algorithm 1 with V drawn every 3 steps and U every step; vectors as MeZO; theta agrees to 1e-12."""
    model, lr, eps, rank, nu = start(), 0.003, 1e-2, 3, 3
    theta = flat(model)
    optimizer = LoZO(model, lr=lr, eps=eps, rank=rank, interval=nu, law=law, normalize=normalize, seed=6)
    for step in range(7):
        u = noise(law, Key(6, step), "a", 0, 6 * rank).view(6, rank).double()
        v = noise(law, Key(6, step // nu, 0, Purpose.BASIS), "a", 0, 5 * rank).view(5, rank).double()
        z = torch.cat([(scale * u @ v.T).flatten(), noise(law, Key(6, step), "b", 0, 7).double()])
        slope = float(function(theta + eps * z) - function(theta - eps * z)) / (2 * eps)
        theta = theta - lr * slope * z
        optimizer.step(of(function), {})
        torch.testing.assert_close(flat(model), theta, rtol=0, atol=1e-12)


def test_the_scalings_translate_into_each_other() -> None:
    """`eps_none = eps_rms / sqrt(rank)` and `lr_none = lr_rms / rank` move the matrix alike, as the docstring says."""
    ends = []
    for normalize, lr, eps in (("rms", 0.01, 1e-2), ("none", 0.01 / 4, 1e-2 / 2)):
        model = Weights(a=normals((6, 5), 2, torch.float64))
        optimizer = LoZO(model, lr=lr, eps=eps, rank=4, interval=2, normalize=normalize)  # type: ignore[arg-type]
        for _ in range(5):
            optimizer.step(of(lambda joined: (joined.cos() * GRID[:30]).sum()), {})
        ends.append(flat(model))
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-12)


def test_a_window_is_one_adapter() -> None:
    """Within a window the change of a matrix has the rank of V; the next window adds another subspace."""
    model = Weights(a=normals((20, 15), 2, torch.float64))
    before = model.a.detach().clone()
    optimizer = LoZO(model, lr=1e-3, eps=1e-2, rank=2, interval=5)
    for _ in range(5):
        optimizer.step(of(lambda joined: joined.square().sum()), {})
    assert int(torch.linalg.matrix_rank(model.a.detach() - before)) == 2
    optimizer.step(of(lambda joined: joined.square().sum()), {})
    assert int(torch.linalg.matrix_rank(model.a.detach() - before)) > 2


def test_thin_products_stand_in_for_the_weight() -> None:
    """GPT-2's `addmm` and Llama's `linear` never make the perturbed matrix: the direction's block is not asked for."""
    for family in ("gpt2", "llama"):
        model = tiny(family)
        optimizer = LoZO(model, eps=1e-2, scope="regex:c_fc.weight|up_proj.weight")
        asked: list[str] = []
        optimizer.direction.block = lambda target, *rest, asked=asked: asked.append(target.name)  # type: ignore
        before = weights(model)
        losses = optimizer.evaluator.losses(loss, batch_for(family), optimizer.estimator.points(0, 0))
        assert asked == [] and same_bits(weights(model), before)
        assert float((losses[0] - losses[1]).abs().max()) > 1e-6
