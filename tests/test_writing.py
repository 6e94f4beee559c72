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

from zotune import kernels
from zotune import writing as module
from zotune.noise import Key, Purpose

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
