"""Updates in chunks, whatever the layout, each with dither of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests import models
from tests.models import (
    Weights,
    flat,
    given,
    normals,
    train,
)
from torch import nn

from zotune import kernels
from zotune import writing as module
from zotune.noise import Key, Law, Purpose
from zotune.store import store_for

one_thread = models.one_thread
methods = pytest.mark.parametrize("method", models.METHOD_ROWS)
halves = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])


@methods
@halves
def test_chunks_and_layout_do_not_change_the_update(
    method: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Updated in chunks of 128 elements, or stored transposed in memory: the same bits as at once and contiguous."""
    ends = []
    for chunk, turned in ((1 << 20, False), (128, False), (128, True)):
        monkeypatch.setattr(module, "_CHUNK", chunk)
        model = Weights(a=normals((31, 37), 2, dtype), b=normals(1001, 1, dtype))
        if turned:
            model.a.data = model.a.data.t().contiguous().t()
            assert not model.a.is_contiguous()
        optimizer = train(method, model, queries=2)
        for _ in range(4):
            given(optimizer, 0.05)
        assert model.a.is_contiguous() != turned
        ends.append(flat(model).clone())
    assert torch.equal(ends[0], ends[1]) and torch.equal(ends[0], ends[2])


@methods
def test_every_step_and_tensor_has_its_own_dither(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keyed by seed, step, purpose and name, and asked for exactly the elements that are written; never for float32."""
    asked: list[Any] = []
    inner = kernels.bits16
    monkeypatch.setattr(kernels, "bits16", lambda *args: asked.append(args[:4]) or inner(*args))
    monkeypatch.setattr(module, "_CHUNK", 256)
    model = Weights(a=normals((3, 7), 2, torch.bfloat16), b=normals(300, 1, torch.float16), c=normals(5, 3))
    optimizer, written = train(method, model, seed=6, queries=2), set[str]()
    for step in range(4):
        moved = optimizer.perturber.moved(optimizer.estimator.points(6, step)) & {"a", "b"}
        given(optimizer, 0.1)
        assert {key for key, *_ in asked} <= {Key(6, step, 0, Purpose.DITHER)}
        found = {name: [(start, stop) for _, n, start, stop in asked if n == name] for _, name, *_ in asked}
        assert found.keys() == moved and found.get("a") in (None, [(0, 21)])
        if "b" in moved:
            assert found["b"][0][0] == 0 and found["b"][-1][1] == 300 and len(found["b"]) > 1
            assert all(one[1] == other[0] for one, other in zip(found["b"], found["b"][1:], strict=False))
        written |= moved
        asked.clear()
    assert written == {"a", "b"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"blocks": "cycle"}, {"params": "a"}])
def test_one_pass_over_the_weights_gives_the_same_bits(
    options: dict[str, Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a kernel adds, rounds and stores at once, it is given what makes it equal, for every large tensor."""
    ends: list[torch.Tensor] = []
    passes: list[str] = []

    def one_pass(w: Any, law: Law, key: Key, name: str, start: int, scale: float, dither: Key, fast: bool) -> bool:
        (value,) = kernels.add_noise(w.float(), law, key, name, start, [scale])
        store_for(w.dtype).write(w, value, lambda: kernels.bits16(dither, name, start, start + len(w), w.device))
        passes.append(name)
        return True

    for fold in (kernels.fold, one_pass):
        monkeypatch.setattr(kernels, "fold", fold)
        torch.manual_seed(3)
        model = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(160, 160) for _ in range(2)])}).to(dtype)
        given_to = {"params": [{"params": [model["layers"][0].weight]}]} if "params" in options else options
        optimizer = train("mezo", model, coverage=False, **given_to)
        for _ in range(4):
            given(optimizer, 0.05)
        ends.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    assert torch.equal(ends[0], ends[1])
    expected = {"blocks": ["layers.0.weight", "layers.1.weight"] * 2, "params": ["layers.0.weight"] * 4}
    assert passes == expected.get(next(iter(options), ""), ["layers.0.weight", "layers.1.weight"] * 4)


@pytest.mark.parametrize(
    ("method", "options"),
    [("mezo", {"queries": 2}), ("mezo", {"weight_decay": 0.1}), ("sparse_mezo", {}), ("lozo", {}), ("meazo", {})],
)
def test_other_updates_are_not_one_pass(method: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Several directions, decay, a mask, a low rank and a changed slope are no single sum of weights and noise."""

    def refuse(*_: Any) -> bool:
        raise AssertionError

    monkeypatch.setattr(kernels, "fold", refuse)
    optimizer = train(method, nn.Linear(160, 160, bias=False), coverage=False, **options)
    given(optimizer, 0.05)
    assert optimizer.steps == 1
