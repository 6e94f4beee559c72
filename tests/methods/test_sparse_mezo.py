"""Sparse MeZO against its paper: thresholds, masks from the current weights, and vectors left dense."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests import models
from tests.models import Weights, flat, normals, of, target_of

from zotune.errors import ConfigError
from zotune.methods import SparseMeZO
from zotune.methods.sparse_mezo import kth_magnitude
from zotune.noise import LAWS, Key, Law, noise
from zotune.records import StepRecord

one_thread = models.one_thread


def start(dtype: torch.dtype = torch.float64) -> Weights:
    return Weights(a=normals((6, 5), 2, dtype), b=normals(7, 1, dtype))


@pytest.mark.parametrize("law", LAWS)
def test_four_steps_equal_the_paper(law: Law) -> None:
    """A mask from this step's weights and the first step's threshold, on both sides and the update; 1e-12."""
    model, lr, eps = start(), 0.01, 1e-2
    theta = flat(model)
    optimizer = SparseMeZO(model, lr=lr, eps=eps, sparsity=0.7, law=law, seed=6)
    threshold = theta[:30].abs().sort().values[round(0.3 * 30) - 1]

    def function(joined: torch.Tensor) -> torch.Tensor:
        return (joined.cos() * torch.arange(1, 38)).sum()

    masks = []
    for step in range(4):
        mask = torch.cat([theta[:30].abs() <= threshold, torch.ones(7, dtype=torch.bool)])
        masks.append(mask)
        z = torch.cat([noise(law, Key(6, step), "a", 0, 30), noise(law, Key(6, step), "b", 0, 7)]).double() * mask
        slope = float(function(theta + eps * z) - function(theta - eps * z)) / (2 * eps)
        theta = theta - lr * slope * z
        optimizer.step(of(function), {})
        torch.testing.assert_close(flat(model), theta, rtol=0, atol=1e-12)
    assert int(masks[0].sum()) == 9 + 7
    assert not torch.equal(masks[0], masks[-1]), "the weights must cross the threshold for this test to say anything"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.8, 0.99])
def test_the_share_that_moves_is_what_was_asked_for(dtype: torch.dtype, sparsity: float) -> None:
    """The smallest weights move: `1 - sparsity` of them, and none larger than one that rests."""
    model = Weights(a=normals((50, 41), 2, dtype), tiny=normals((2, 2), 3, dtype))
    optimizer = SparseMeZO(model, sparsity=sparsity)
    target = target_of(optimizer, "a")
    moves = optimizer.direction.block(target, Key(0, 0), 0, 2050) != 0
    kept = round((1 - sparsity) * 2050)
    size = target.data.abs().flatten()
    ties = int((size == size.sort().values[kept - 1]).sum())
    assert kept <= int(moves.sum()) + 3 and int(moves.sum()) <= kept + ties - 1  # the table holds no 0, ties do exist
    if sparsity:
        assert float(size[moves].max()) <= float(size[~moves].min())
    if sparsity == 0.99:
        assert not bool(optimizer.direction.block(target_of(optimizer, "tiny"), Key(0, 0), 0, 4).any())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_threshold_is_the_kth_smallest_magnitude(dtype: torch.dtype) -> None:
    """Every k of a tensor with ties, zeros of both signs, subnormal and large numbers: what sorting gives, exactly."""
    special = torch.tensor([0.0, -0.0, 1e-7, -1e-7, 2e-7, 60000.0, -1.0, 1.0, 1.0, -1e-40]).to(dtype)
    weight = torch.cat([special, normals(200, 1, dtype)]).view(10, 21)
    expected = weight.abs().flatten().float().sort().values
    assert [kth_magnitude(weight, k) for k in range(1, 211)] == expected.tolist()


def test_the_threshold_of_a_tensor_in_several_parts() -> None:
    """More elements than are looked at in one go, stored transposed."""
    weight = normals((1024, 1500), 3).t()
    expected = weight.abs().flatten().sort().values
    for k in (1, 700_000, weight.numel()):
        assert kth_magnitude(weight, k) == float(expected[k - 1])


def test_weights_at_rest_keep_their_bits() -> None:
    """A large update moves no weight above the threshold, in bfloat16 with several queries."""
    model = start(torch.bfloat16)
    before = flat(model)
    optimizer = SparseMeZO(model, lr=1.0, sparsity=0.75, queries=3)
    optimizer.replay(StepRecord(0, (1.0,), (1.0, -1.0) * 3))
    rests = before[:30].abs() > float(optimizer.direction.state()["a"])
    moved = flat(model)[:30] != before[:30]
    assert not bool((moved & rests).any())
    assert int(rests.sum()) == 22 and int(moved.sum()) >= 7


def test_thresholds_travel_with_the_state() -> None:
    """A run continued from later weights keeps the first weights' threshold instead of learning another."""
    model = start()
    optimizer = SparseMeZO(model)
    state = optimizer.state_dict()
    with torch.no_grad():
        model.a.mul_(3)
    later = SparseMeZO(model)
    assert later.direction.state() != optimizer.direction.state()
    later.load_state_dict(state)
    assert later.direction.state() == optimizer.direction.state()


@pytest.mark.parametrize("select", ["large", "random"])
def test_the_controls_equal_the_paper(select: Any) -> None:
    """Four steps by hand to 1e-12: the largest weights by the initial threshold, or one mask that never changes."""
    model, lr, eps = start(), 0.01, 1e-2
    theta = flat(model)
    optimizer = SparseMeZO(model, lr=lr, eps=eps, sparsity=0.7, select=select, seed=6)
    threshold = theta[:30].abs().sort().values[30 - round(0.3 * 30) - 1]
    drawn = optimizer.direction.block(target_of(optimizer, "a"), Key(6, 3), 0, 30) != 0

    def function(joined: torch.Tensor) -> torch.Tensor:
        return (joined.cos() * torch.arange(1, 38)).sum()

    for step in range(4):
        chosen = theta[:30].abs() > threshold if select == "large" else drawn
        mask = torch.cat([chosen, torch.ones(7, dtype=torch.bool)])
        z = (
            torch.cat([noise("gaussian", Key(6, step), name, 0, n) for name, n in (("a", 30), ("b", 7))]).double()
            * mask
        )
        slope = float(function(theta + eps * z) - function(theta - eps * z)) / (2 * eps)
        theta = theta - lr * slope * z
        optimizer.step(of(function), {})
        torch.testing.assert_close(flat(model), theta, rtol=0, atol=1e-12)
    assert int((theta[:30] != flat(start())[:30]).sum()) in (range(9, 12) if select == "large" else [int(drawn.sum())])


def test_a_random_mask_has_the_share_and_no_preference() -> None:
    """A quarter of 40,000 weights within 4.5 standard errors, as many large as small; another seed, another mask."""
    model = Weights(a=normals((200, 200), 2))
    masks = []
    for seed in (1, 2):
        optimizer = SparseMeZO(model, sparsity=0.75, select="random", seed=seed)
        target = target_of(optimizer, "a")
        masks.append(optimizer.direction.block(target, Key(seed, 7), 0, 40_000) != 0)
        some = torch.tensor([3, 199, 3])
        by_rows = optimizer.direction.rows(target, Key(seed, 9), some) != 0
        assert torch.equal(by_rows, masks[-1].view(200, 200)[some])
        assert abs(float(masks[-1].float().mean()) - 0.25) < 4.5 * (0.25 * 0.75 / 40_000) ** 0.5
        assert abs(float(model.a.data[masks[-1].view(200, 200)].abs().mean() / model.a.data.abs().mean()) - 1) < 0.05
    assert abs(float((masks[0] & masks[1]).float().mean()) - 1 / 16) < 0.01


def test_an_unknown_selection_is_refused() -> None:
    """With those that there are."""
    with pytest.raises(ConfigError, match="select is 'tiny'. Remedy: use 'small', 'large' or 'random'."):
        SparseMeZO(start(), select="tiny")  # type: ignore[arg-type]


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, float("nan")])
def test_an_impossible_sparsity_is_refused(sparsity: float) -> None:
    """Outside [0, 1) nothing could be trained; the message gives the remedy."""
    with pytest.raises(ConfigError, match="Remedy"):
        SparseMeZO(start(), sparsity=sparsity)
