"""HiZOO against its paper in all three forms of the curvature, what its increment means, and its limit MeZO."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests import models
from tests.models import Weights, batch_for, flat, loss, normals, of, same_bits, target_of, tiny, weights
from torch import Tensor

from zotune.errors import ConfigError
from zotune.methods import HiZOO, MeZO
from zotune.noise import LAWS, Key, Law, noise

one_thread = models.one_thread
GRID = torch.arange(1, 38, dtype=torch.float64) / 8


def function(joined: Tensor) -> Tensor:
    return (joined.cos() * GRID).sum()


def start() -> Weights:
    return Weights(a=normals((6, 5), 2, torch.float64), b=normals(7, 1, torch.float64))


def means(h: Tensor, curvature: str) -> Tensor:
    """A (rows, columns) increment as the form of the curvature sees it, in full."""
    if curvature == "dense":
        return h
    if curvature == "tensor":
        return h.mean().expand_as(h)
    return h.mean(1, keepdim=True) * h.mean(0, keepdim=True) / h.mean()


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("queries", [1, 2])
@pytest.mark.parametrize("curvature", ["dense", "factored", "tensor"])
def test_six_steps_equal_the_paper(law: Law, queries: int, curvature: Any) -> None:
    """Probe and update along z / sqrt(H), then H <- (1 - alpha) H + alpha |second difference| / (2 eps^2) H z^2."""
    model, lr, eps, alpha = start(), 1e-3, 1e-2, 0.02
    theta, h = flat(model), [torch.ones(6, 5, dtype=torch.float64), torch.ones(7, 1, dtype=torch.float64)]
    optimizer = HiZOO(model, lr=lr, eps=eps, smoothing=alpha, curvature=curvature, law=law, queries=queries, seed=3)
    for step in range(6):
        root = torch.cat([part.flatten() for part in h]).sqrt()
        change, grown = torch.zeros(37, dtype=torch.float64), torch.zeros(37, dtype=torch.float64)
        for query in range(queries):
            key = Key(3, step, query)
            z = torch.cat([noise(law, key, "a", 0, 30), noise(law, key, "b", 0, 7)]).double()
            plus, minus = (float(function(theta + side * eps * z / root)) for side in (1, -1))
            change = change + (plus - minus) / (2 * eps * queries) * z / root
            grown = grown + abs(plus + minus - 2 * float(function(theta))) / (2 * eps**2 * queries) * z**2
        theta = theta - lr * change
        for i, part in enumerate((grown[:30].view(6, 5), grown[30:].view(7, 1))):
            mixed = (1 - alpha) * h[i] + alpha * h[i] * part
            if curvature == "factored":  # the means of both terms, joined once
                by_row = (1 - alpha) * h[i].mean(1, keepdim=True) + alpha * (h[i] * part).mean(1, keepdim=True)
                by_column = (1 - alpha) * h[i].mean(0, keepdim=True) + alpha * (h[i] * part).mean(0, keepdim=True)
                h[i] = by_row * by_column / by_row.mean()
            else:
                h[i] = means(mixed, curvature)
        optimizer.step(of(function), {})
        torch.testing.assert_close(flat(model), theta, rtol=0, atol=1e-11)
    assert float((h[0] - 1).abs().max()) > 1e-2  # something was learned


@pytest.mark.parametrize("eps", [1e-2, 3e-3])
def test_the_curvature_is_that_at_the_radius_that_was_probed(eps: float) -> None:
    """On a quadratic the second difference over eps^2 is the same at every radius, after halvings too; 1e-6."""
    grown = []
    for halvings in range(3):
        model = start()
        optimizer = HiZOO(model, lr=1e-3, eps=eps, smoothing=0.5, halve_eps=True, seed=3)
        for _ in range(halvings):
            optimizer.leave_out()
        optimizer.steps = 7  # the same z, whatever came before
        other = HiZOO(start(), lr=1e-3, eps=eps, smoothing=0.5, halve_eps=True, seed=3)
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for each in (optimizer, other):
            each.step(of(lambda joined: joined.square().sum()), {})
            grown.append(each.direction.state()["a/0"])
    for each in grown[1:]:
        torch.testing.assert_close(each, grown[0], rtol=1e-6, atol=0)


@pytest.mark.parametrize("queries", [1, 2])
def test_without_smoothing_it_is_mezo(queries: int) -> None:
    """Smoothing 0 gives MeZO's weights bit for bit on a language model, and keeps nothing."""
    ends = []
    for method, more in ((MeZO, {}), (HiZOO, {"smoothing": 0.0})):
        model = tiny("llama")
        optimizer = method(model, lr=1e-2, eps=1e-3, queries=queries, lanes="off", **more)  # type: ignore[operator]
        for _ in range(3):
            optimizer.step(loss, batch_for("llama"))
        assert not optimizer.direction.state()
        ends.append(weights(model))
    assert same_bits(*ends)
    assert not same_bits(ends[0], weights(tiny("llama")))


def test_the_increment_means_what_the_docstring_says() -> None:
    """On a quadratic, E |second difference| / (2 eps^2) z_i^2 = tr(A) / 2 + A_ii within 4.5 standard errors."""
    size, seen = 6, []
    root = normals((size, size), 3, torch.float64)
    curve = root @ root.T / size
    model = Weights(a=normals((3, 2), 1, torch.float64))
    before = flat(model)
    optimizer = HiZOO(model, lr=0.0, eps=1e-2, smoothing=0.5)
    for step in range(1000):
        optimizer.step(of(lambda joined: joined @ curve @ joined / 2), {})
        seen.append((2 * optimizer.direction.state()["a/0"] - 1).flatten())
        optimizer.direction.load_state({})
        assert optimizer.steps == step + 1
    assert torch.equal(flat(model), before)
    found = torch.stack(seen)
    error = found.mean(0) - (curve.trace() / 2 + curve.diagonal())
    bound = 4.5 * found.std(0) / len(found) ** 0.5
    assert bool((error.abs() <= bound).all()), (error / bound).tolist()
    assert float(bound.max()) < float(curve.trace())


@pytest.mark.parametrize(("curvature", "kept"), [("dense", 37), ("factored", 6 + 5 + 7 + 1), ("tensor", 2)])
def test_the_declared_memory_is_what_is_kept(curvature: Any, kept: int) -> None:
    """H in each of its forms."""
    optimizer = HiZOO(start(), eps=1e-2, curvature=curvature)
    plain = MeZO(start()).direction.state_elements(optimizer.perturber.targets())
    assert optimizer.direction.state_elements(optimizer.perturber.targets()) == plain + kept
    optimizer.step(of(function), {})
    assert sum(h.numel() for h in optimizer.direction.state().values()) == kept


@pytest.mark.parametrize("curvature", ["dense", "factored", "tensor"])
def test_a_slice_and_some_rows_are_those_of_the_whole(curvature: Any) -> None:
    """z of any slice, in the middle of rows too, and of any rows, after H has been learned."""
    model = Weights(a=normals((40, 30), 2))
    optimizer = HiZOO(model, lr=1e-3, eps=1e-2, smoothing=1e-2, curvature=curvature)
    for _ in range(2):
        optimizer.step(of(lambda joined: joined.square().sum()), {})
    target, key = target_of(optimizer, "a"), Key(0, 2)
    whole = optimizer.direction.block(target, key, 0, 1200)
    assert torch.equal(optimizer.direction.block(target, key, 47, 391), whole[47:391])
    rows = torch.tensor([7, 0, 39, 7])
    assert torch.equal(optimizer.direction.rows(target, key, rows), whole.view(40, 30)[rows])


@pytest.mark.parametrize("wrong", [{"smoothing": -1e-9}, {"smoothing": 1.0}, {"curvature": "diagonal"}, {"eps": 0.0}])
def test_wrong_arguments_are_refused(wrong: dict[str, Any]) -> None:
    """Each with its remedy."""
    with pytest.raises(ConfigError, match="Remedy"):
        HiZOO(start(), **wrong)
