"""Directions in places: the numbers of any key that the places are filled with, whatever the law and the shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.models import Weights, normals, train

from zotune import direction as drawing
from zotune.direction import Direction
from zotune.graphs import held as module
from zotune.graphs.graph import Unrecordable
from zotune.graphs.held import Held, copy_all
from zotune.noise import Key

METHODS = ["mezo", "sparse_mezo", "lozo", "lozo_m", "fzoo", "es", "eggroll", "subzero", "zo_muon", "kerzoo"]
Build = Callable[..., tuple[Any, Held]]
FIRST, LATER = [Key(3, 0), Key(3, 0, 1)], [Key(3, 4), Key(3, 4, 1)]


@pytest.fixture(params=[1 << 14, 64], ids=["small", "large"])
def build(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Build:
    """An optimizer of some method and its direction held at FIRST: all tensors small, or all large."""
    for place in (module, drawing):
        monkeypatch.setattr(place, "_SMALL", request.param)

    def made(method: str, dtype: torch.dtype = torch.float32, **options: Any) -> tuple[Any, Held]:
        model = Weights(a=normals((31, 37), 1, dtype), b=normals(101, 2, dtype), c=normals((9, 80), 3, dtype))
        optimizer = train(method, model, **options)
        return optimizer, Held(optimizer.direction, optimizer.perturber.targets(), FIRST)

    return made


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_places_hold_the_numbers_of_the_keys_that_they_were_filled_with(
    build: Build, method: str, dtype: torch.dtype
) -> None:
    """Asked for the keys of the recording, in any form: those of the keys of a later step, in another window too."""
    if drawing._SMALL == 64 and method in ("subzero", "zo_muon"):
        with pytest.raises(Unrecordable, match="direction of b depends on more than the step's key"):
            build(method, dtype)
        return
    optimizer, held = build(method, dtype)
    fresh: Direction = train(method, optimizer.model).direction
    held.fill(LATER)
    for target in optimizer.perturber.targets():
        w, rows = target.data.reshape(-1), torch.tensor([2, 0, 2])
        for key, real in zip(FIRST, LATER, strict=True):
            count = target.data.numel()
            assert torch.equal(held.block(target, key, 0, count), fresh.block(target, real, 0, count))
            found, expected = held.factors(target, key), fresh.factors(target, real)
            assert (found is None) == (expected is None)
            if found is not None and expected is not None:
                assert torch.equal(found.u, expected.u) and torch.equal(found.v, expected.v)
            for one, other in zip(
                held.add(target, key, 0, w, [0.1, -0.1]), fresh.add(target, real, 0, w, [0.1, -0.1]), strict=True
            ):
                assert torch.equal(one, other)
            if target.data.dim() > 1:
                assert torch.equal(held.rows(target, key, rows), fresh.rows(target, real, rows))


def test_what_needs_more_than_a_key_is_refused(build: Build) -> None:
    """Large tensors whose z reads what a method keeps, and directions that share their numbers."""
    with pytest.raises(Unrecordable, match="share their numbers"):
        build("grzo")
    if drawing._SMALL == 64:
        with pytest.raises(Unrecordable, match="of [abc] depends on more than the step's key"):
            build("hizoo")


def test_an_update_that_waits_shares_the_basis_of_its_window(build: Build) -> None:
    """One copy of v then serves both; after a change of windows, or without a basis, it has its own."""
    optimizer, held = build("lozo")
    target = optimizer.perturber.targets()[0]
    same = optimizer.direction.combined(target, [(FIRST[0], 0.5)])
    other = optimizer.direction.combined(target, [(Key(3, 30), 0.5)])
    for factors, shared in ((same, True), (other, False)):
        place = held.waiting({"a": factors})["a"]
        assert held.shares("a", place) == shared and place.u is not factors.u and torch.equal(place.u, factors.u)
        assert torch.equal(place.v, factors.v) and place.scale == factors.scale


def test_other_shapes_do_not_fit() -> None:
    """What is drawn in another shape, or another dtype, is an error, not a broadcast."""
    for value in (torch.zeros(1, 3), torch.zeros(3, dtype=torch.float64)):
        with pytest.raises(Unrecordable, match="another shape"):
            copy_all([torch.zeros(3)], [value])
