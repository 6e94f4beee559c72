"""Directions: blocks, rows, factors and sums agree, draws are pure, and what is kept stays within its bound."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests import models
from tests.models import ARGUMENTS, FOR_EVERY_WEIGHT, ROWS, Weights, normals, of, train
from torch import Tensor

from zotune import direction as module
from zotune import kernels
from zotune.direction import Dense, Direction, Target, Together
from zotune.estimate import Probe
from zotune.low_rank import LowRank
from zotune.methods import METHODS
from zotune.methods.sparse_mezo import SmallWeights
from zotune.noise import LAWS, Key, Law, noise

one_thread = models.one_thread
KEY = Key(3, 7, 1)
# Odd shapes, a vector, a scalar, an empty one, more than two dimensions, and one above the size of joint draws.
SHAPES: dict[str, tuple[int, ...]] = {
    "matrix": (7, 5),
    "thin": (1, 9),
    "tall": (130, 3),
    "vector": (33,),
    "scalar": (),
    "kernel": (4, 3, 2, 2),
    "large": (331, 307),
    "long": (20_011,),
}
DIRECTIONS = {
    "dense": lambda law: Dense(law),
    "small": lambda law: SmallWeights(law, 0.6),
    "lowrank": lambda law: LowRank(2, 3, law),
    "lowrank-wide": lambda law: LowRank(11, 2, law, "none"),
}


def targets(dtype: torch.dtype = torch.float32) -> list[Target]:
    return [Target(name, normals(shape, len(name), dtype, 0.1)) for name, shape in SHAPES.items()]


def build(kind: str, dtype: torch.dtype = torch.float32, law: Law = "gaussian") -> tuple[Direction, list[Target]]:
    direction, every = DIRECTIONS[kind](law), targets(dtype)
    direction.prepare(every)
    return direction, every


kinds = pytest.mark.parametrize("kind", DIRECTIONS)
dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])


def whole(direction: Direction, target: Target, key: Key = KEY) -> Tensor:
    return direction.block(target, key, 0, target.data.numel())


@pytest.mark.parametrize("shape", [*SHAPES.values(), (0, 4), (300, 128), (1000, 48), (5, 1000)])
@pytest.mark.parametrize("limit", [1, 500, 4096, 1 << 20])
def test_slices_cover_a_tensor_in_whole_rows_and_blocks(shape: tuple[int, ...], limit: int) -> None:
    """Consecutive, without gaps; each starts at a row and at a block of the stream, so that fused kernels serve it."""
    target = Target("w", torch.zeros(shape))
    columns, size = target.matrix_shape[1], target.data.numel()
    found = list(target.slices(limit))
    assert [stop for _, stop in found[:-1]] == [start for start, _ in found[1:]]
    assert (found[0][0], found[-1][1]) == (0, size) if size else found == []
    assert all(start % max(columns, 1) == 0 and start % 128 == 0 for start, _ in found)
    smallest = columns * 128  # rows that fill whole blocks whatever the width
    assert all(stop - start <= max(limit, smallest) for start, stop in found)


@kinds
@pytest.mark.parametrize("law", LAWS)
def test_a_block_is_a_slice_of_the_whole(kind: str, law: Law) -> None:
    """Cut anywhere, a direction's blocks join to the direction, bit for bit."""
    direction, every = build(kind, law=law)
    for target in every:
        z, size = whole(direction, target), target.data.numel()
        assert z.shape == (size,)
        for start, stop in ((0, 1), (1, size), (size // 3, size // 2), (size // 2, size // 2)):
            assert torch.equal(direction.block(target, KEY, start, stop), z[start:stop]), target.name


@kinds
@dtypes
def test_rows_are_rows_of_the_whole(kind: str, dtype: torch.dtype) -> None:
    """Looked-up rows, repeated and out of order, equal the same rows of the whole direction."""
    direction, every = build(kind, dtype)
    for target in every:
        height, columns = target.matrix_shape
        rows = torch.tensor([height - 1, 0, height // 2, 0])
        expected = whole(direction, target).view(height, columns)[rows]
        assert torch.equal(direction.rows(target, KEY, rows), expected), target.name
        assert Direction.rows(direction, target, KEY, rows[:0]).shape == (0, columns)
        assert torch.equal(Direction.rows(direction, target, KEY, rows), expected), target.name


@kinds
@dtypes
def test_adding_equals_the_block_added(kind: str, dtype: torch.dtype) -> None:
    """The fused sum is `w + s z` with the block's own z, for each scale; a mask keeps the bits of w."""
    direction, every = build(kind, dtype)
    for target in every:
        size = target.data.numel()
        for start, stop in ((0, size), (size // 4, size // 2)):
            w = target.data.reshape(-1)[start:stop]
            z = direction.block(target, KEY, start, stop)
            sums = direction.add(target, KEY, start, w, [0.3, -0.3])
            for scale, moved in zip((0.3, -0.3), sums, strict=True):
                assert moved.dtype == dtype
                assert torch.equal(moved, kernels.add_scaled(w, z, scale)), target.name


@kinds
def test_draws_are_pure(kind: str) -> None:
    """The same question gives the same bits after any other questions, and in a second object."""
    direction, every = build(kind)
    first = {target.name: whole(direction, target).clone() for target in every}
    for step in range(12):
        for target in reversed(every):
            whole(direction, target, Key(3, step, step % 3))
    other, _ = build(kind)
    for target in reversed(every):
        assert torch.equal(whole(direction, target), first[target.name])
        assert torch.equal(whole(other, target), first[target.name])


@kinds
def test_another_key_or_name_is_another_direction(kind: str) -> None:
    """Step, query and name each change the direction of a matrix and of a vector."""
    direction, every = build(kind)
    twin = Target("twin", every[0].data)
    direction.prepare([twin])
    assert not torch.equal(whole(direction, twin), whole(direction, every[0]))
    for target in (every[0], every[3], every[6]):
        for key in (Key(3, 8, 1), Key(3, 7, 2), Key(4, 7, 1)):
            assert not torch.equal(whole(direction, target, key), whole(direction, target)), target.name


@pytest.mark.parametrize("law", LAWS)
def test_a_dense_direction_is_the_noise(law: Law) -> None:
    """Small tensors drawn together and large ones drawn alone: both are the stream itself."""
    direction, every = build("dense", law=law)
    for target in every:
        assert torch.equal(whole(direction, target), noise(law, KEY, target.name, 0, target.data.numel()))


def tensors_of(value: Any, seen: set[int]) -> int:
    """Numbers in all distinct tensor storages and past probes reachable from an object's attributes."""
    if id(value) in seen:
        return 0
    seen.add(id(value))
    if isinstance(value, Tensor):
        storage = value.untyped_storage()
        if storage.data_ptr() in seen:
            return 0
        seen.add(storage.data_ptr())
        return storage.nbytes() // value.element_size()
    if isinstance(value, Probe):
        return 4 + len(value.losses)
    if isinstance(value, dict):
        return sum(tensors_of(item, seen) for item in value.values()) + sum(
            isinstance(item, float) for item in value.values()
        )
    if isinstance(value, (list, tuple, set)):
        return sum(tensors_of(item, seen) for item in value)
    return sum(tensors_of(item, seen) for item in vars(value).values()) if hasattr(value, "__dict__") else 0


# Every row, and the arguments with which more is kept, or less.
KEPT: list[tuple[str, dict[str, Any]]] = [
    *((method, {}) for method in METHODS),
    ("mezo", {"moments": "adam", "history": 5}),
    ("mezo", {"moments": "momentum"}),
    ("mezo", {"scaling": "variance"}),
    ("mezo", {"feedback": "residual", "queries": 1}),
    ("loren", {"momentum": 0.9}),
    ("loren", {"form": "flat"}),
    ("hizoo", {"curvature": "factored"}),
    ("hizoo", {"curvature": "tensor"}),
    ("subzero", {"sides": 1, "adam": True}),
    ("grzo", {"form": "strict", "rank": 3, "interval": 3}),
    ("meazo", {"groups": 2}),
]


@pytest.mark.parametrize(("method", "more"), KEPT)
def test_what_is_kept_is_what_was_declared(method: str, more: dict[str, Any]) -> None:
    """After many steps direction and rule hold no more numbers than they declare together, of past probes too.

    No large tensor is among them, but where the paper keeps a number for every weight.
    """
    model = Weights(large=normals((400, 300), 1), small=normals((20, 30), 2), vector=normals(50, 3))
    optimizer = train(method, model, **{"queries": 3, **more})
    for _ in range(7):
        optimizer.step(of(lambda theta: theta.square().mean()), ROWS)
    targets = optimizer.perturber.targets()
    declared = optimizer.direction.state_elements(targets) + optimizer.rule.state_elements(targets)
    # Joint draws are padded to whole blocks of the stream, of 128 signs or 8 normals for a tensor and key.
    padding = 128 * 5
    known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    held = {id(probe) for probe in optimizer.probes}  # those of the last step are no state of the method
    kept = tensors_of(optimizer, known | held)
    assert kept <= declared + padding
    # State grows with the sides of a matrix or with small tensors only: nothing here is as large as the matrix.
    rank = sum({**ARGUMENTS.get(method, {}), **more}.get(name, 0) for name in ("rank", "width"))
    if method in FOR_EVERY_WEIGHT and "curvature" not in more or "momentum" in more:
        assert declared >= 400 * 300
    else:
        assert declared <= 6 * (650 + rank * 750) + 10 < 400 * 300


def test_joint_draws_are_kept_for_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """All keys of a step and none of another, the same values when drawn again; elements count the most kept."""
    cpu, together = torch.device("cpu"), Together("gaussian")
    together.add("a", 10, cpu)
    together.add("b", 5, cpu)
    first = [together.draw(Key(0, 0, query), "a").clone() for query in range(6)]
    assert len(together._drawn) == 6 and together.elements == 90
    together.draw(Key(0, 1), "b")
    assert len(together._drawn) == 1 and together.elements == 90
    assert all(torch.equal(together.draw(Key(0, 0, query), "a"), each) for query, each in enumerate(first))
    monkeypatch.setattr(module, "_ROOM", 50)
    small = Together("gaussian")
    small.add("a", 10, cpu)
    small.add("b", 5, cpu)
    assert all(torch.equal(small.draw(Key(0, 0, query), "a"), each) for query, each in enumerate(first))
    assert len(small._drawn) == 4 and small.elements == 60


def test_past_steps_are_drawn_for_one_tensor_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many past steps for one tensor after the other draw no other tensor; several in a row draw all of that step."""
    cpu, together, drawn = torch.device("cpu"), Together("gaussian"), list[int]()
    many, names = kernels.noise_many, [f"w{i}" for i in range(5)]

    def counted(law: Law, key: Key, *rest: Any) -> list[Tensor]:
        drawn.append(key.step)
        return many(law, key, *rest)

    monkeypatch.setattr(kernels, "noise_many", counted)
    for name in names:
        together.add(name, 10, cpu)
    expected = {(name, step): noise("gaussian", Key(0, step), name, 0, 10) for name in names for step in range(9)}
    for name in names:
        for step in reversed(range(9)):
            assert torch.equal(together.draw(Key(0, step), name), expected[name, step])
    assert drawn == [8]
    for step in (2, 3, 1):
        for name in names:
            assert torch.equal(together.draw(Key(0, step), name), expected[name, step])
    assert drawn == [8, 2, 3, 1]
