"""Small tensors that are updated as one end with the bits of tensors that are updated one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests import models
from tests.models import Weights, flat, given, normals, train
from torch import Tensor

from zotune import joint, writing
from zotune import updates as module
from zotune.direction import Dense, Target
from zotune.joint import EndToEnd, chunks, write_jointly
from zotune.low_rank import LowRank
from zotune.methods import METHODS
from zotune.noise import Key, Purpose
from zotune.rule import decayed

one_thread = models.one_thread
DENSE = ("mezo", "lozo", "fzoo", "es", "eggroll", "kerzoo")
JOINT: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in DENSE),
    *((name, {"weight_decay": 0.1}) for name in DENSE),
    ("mezo", {"moments": "momentum"}),
    ("mezo", {"moments": "adam", "weight_decay": 0.1}),
]


def small(dtype: torch.dtype) -> Weights:
    """Three vectors, one of them in strides, a number alone, and two matrices, one of them small."""
    model = Weights(
        a=normals(7, 1, dtype), b=normals((31, 37), 2, dtype), c=normals(300, 3, dtype), d=normals((), 4, dtype),
        e=normals((64, 300), 5, dtype), f=normals((5, 9), 6, dtype),
    )  # fmt: skip
    model.f.data = model.f.data.t().contiguous().t()
    with torch.no_grad():
        model.a[::2] = -0.0
    return model


def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on no tensors are moved as one."""
    monkeypatch.setattr(module.Updates, "_move_jointly", lambda updates, moves, *_: list(moves))


@pytest.mark.parametrize(("method", "options"), JOINT)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_bits_of_one_by_one(
    method: str, dtype: torch.dtype, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four steps, one of length zero: whatever the dtype, the layout and the decay, and in chunks too."""
    ends, written = [], []
    inner = write_jointly
    monkeypatch.setattr(
        module, "write_jointly", lambda targets, *rest: (written.append(len(targets)), inner(targets, *rest))
    )
    for kind in ("as one", "in chunks", "alone"):
        if kind == "in chunks":
            monkeypatch.setattr(writing, "_CHUNK", 310)
        if kind == "alone":
            alone(monkeypatch)
        optimizer = train(method, small(dtype), **options)
        for lr in (0.05, 0.0, 0.05, 0.05):
            given(optimizer, lr)
        optimizer.fold()
        ends.append(flat(optimizer.model).clone())
        if kind == "as one":
            assert written and min(written) >= 2
    assert torch.equal(ends[0].view(torch.uint8), ends[2].view(torch.uint8))
    assert torch.equal(ends[1].view(torch.uint8), ends[2].view(torch.uint8))


@pytest.mark.parametrize("method", [name for name in METHODS if name not in {"qzo", "agzo", "aimzo"}])
def test_other_methods_are_left_alone(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule that keeps something of a tensor is asked tensor by tensor: every method ends as without joint updates."""
    ends = []
    for kind in ("as one", "alone"):
        if kind == "alone":
            alone(monkeypatch)
        optimizer = train(method, small(torch.bfloat16))
        for _ in range(3):
            given(optimizer, 0.05)
        optimizer.fold()
        ends.append(flat(optimizer.model).clone())
    assert torch.equal(ends[0], ends[1])


def test_what_rests_is_not_moved() -> None:
    """With a part of the blocks in a step, a tensor at rest only decays, whatever moves beside it."""
    model = models.tiny("llama")
    optimizer = train("mezo", model, blocks="cycle", weight_decay=0.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.step(models.loss, models.batch_for("llama"))
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved and all(name.startswith("model.layers.0.") for name in moved)


@pytest.mark.parametrize("direction", [Dense("gaussian"), Dense("rademacher"), LowRank(2, 5)])
def test_noise_end_to_end_is_that_of_each(direction: Any) -> None:
    """Any slice of the whole is the slice of the tensors' own noise, one behind the other."""
    targets = [Target(name, torch.zeros(count)) for name, count in (("a", 7), ("b", 300), ("c", 1))]
    direction.prepare(targets)
    key = Key(3, 1, 2)
    each = torch.cat([direction.block(t, key, 0, t.data.numel()) for t in targets])
    side = EndToEnd(direction, targets)
    assert all(direction.is_joint(t) for t in targets)
    assert torch.equal(side.block(Target("", torch.zeros(308)), key, 0, 308), each)
    assert torch.equal(side.block(Target("", torch.zeros(308)), key, 5, 20), each[5:20])


def test_large_tensors_are_not_drawn_whole() -> None:
    """Nor matrices that are low rank: they are left to their own pass."""
    large, matrix = Target("a", torch.zeros(20000)), Target("b", torch.zeros(3, 3))
    dense, thin = Dense(), LowRank(2, 5)
    for direction in (dense, thin):
        direction.prepare([large, matrix])
    assert not dense.is_joint(large) and dense.is_joint(matrix) and not thin.is_joint(matrix)


def test_chunks_hold_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, at least one tensor each."""
    targets = [Target(str(count), torch.zeros(count)) for count in (4, 5, 20, 1, 9, 1)]
    monkeypatch.setattr(joint, "chunk_of", lambda device: 10)
    assert [[t.data.numel() for t in chunk] for chunk in chunks(targets)] == [[4, 5], [20], [1, 9], [1]]


def test_sixteen_bits_are_rounded_with_their_own_dither() -> None:
    """Each tensor's bits are those of its name, wherever it stands among the others."""
    values: Tensor = torch.linspace(1, 2, 50)
    for order in (["a", "b"], ["b", "a"]):
        targets = [Target(name, torch.zeros(25, dtype=torch.bfloat16)) for name in order]
        wide = {"a": values[:25], "b": values[25:]}
        whole = torch.cat([wide[name] for name in order])
        write_jointly(
            targets, Dense(), Key(0, 4, 0, Purpose.DITHER), lambda block, whole=whole: decayed(block, 0, 0) + whole
        )  # type: ignore[misc]
        found = {t.name: t.data for t in targets}
        if order[0] == "a":
            first = found
    assert all(torch.equal(first[name], found[name]) for name in "ab")
    assert not torch.equal(first["a"], values[:25].to(torch.bfloat16))
