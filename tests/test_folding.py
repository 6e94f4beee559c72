"""Low-rank updates that wait: summed as factors, seen by every forward, written into the weights once per window."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import models
from tests.models import FAMILIES, ROWS, Weights, batch_for, flat, loss, normals, of, same_bits, tiny, train, weights
from torch import Tensor

import zotune
from zotune.journal import HashRecord, Journal
from zotune.methods import METHODS
from zotune.optimizer import ZerothOrder
from zotune.rebuild import current_sha256
from zotune.records import StepRecord

one_thread = models.one_thread
WAITING = [name for name in METHODS if train(name, Weights(a=torch.ones(4, 4))).direction.window() > 1]
waiting = pytest.mark.parametrize("method", WAITING)


def pair(method: str, family: str, dtype: torch.dtype, steps: int, **options: Any) -> tuple[ZerothOrder, ZerothOrder]:
    """The same run twice after `steps` steps: folded in every step, and in windows of three."""
    both = tuple(train(method, tiny(family, dtype), lr=1e-2, **options) for _ in range(2))
    both[1].fold_in_windows()
    assert both[1].fold_every == 3
    for optimizer in both:
        for _ in range(steps):
            optimizer.step(loss, batch_for(family))
    return both  # type: ignore[return-value]


@waiting
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lanes", ["auto", "off"])
def test_a_model_with_waiting_updates_computes_what_the_folded_one_does(method: str, family: str, lanes: str) -> None:
    """After two of three steps: same losses, same next step, though the matrices were not written; float64, 1e-12."""
    now, later = pair(method, family, torch.float64, 2, lanes=lanes)
    base = weights(tiny(family, torch.float64))
    matrices = [name for name, tensor in later.model.named_parameters() if tensor.ndim > 1]
    assert all(torch.equal(dict(later.model.named_parameters())[name], base[name]) for name in matrices)
    batch = batch_for(family)
    with torch.inference_mode():
        expected = loss(now.model, batch)
        with later.settled():
            found = loss(later.model, batch)
        assert float((found - expected).abs().max()) < 1e-12 < float((loss(later.model, batch) - expected).abs().max())
    assert now.step(loss, batch) == pytest.approx(later.step(loss, batch), abs=1e-12)
    assert later.perturber.pending == {}
    ends = weights(later.model)
    for name, tensor in weights(now.model).items():
        assert float((tensor - ends[name]).abs().max()) < 1e-13, name


@waiting
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 3 * 2**-8)])
def test_folded_rarely_or_at_once_is_the_same_update(method: str, dtype: torch.dtype, tolerance: float) -> None:
    """Six steps with the same recorded losses: weights up to 1.2 agree, in bfloat16 to three roundings."""
    ends = []
    for every in (1, 3):
        optimizer = train(method, tiny("llama", dtype), fold_every=every)
        for step in range(6):
            losses = tuple(2.0 + 0.1 * math.sin(step + index) for index in range(len(optimizer.estimator.points(0, 0))))
            optimizer.replay(StepRecord(step, (1e-3,), losses))
        ends.append(weights(optimizer.model))
    start = weights(tiny("llama", dtype))
    assert max(float((a - b).abs().max()) for a, b in zip(ends[0].values(), ends[1].values(), strict=True)) <= tolerance
    assert max(float((ends[0][name] - start[name]).abs().max()) for name in start) > 1e-3 + tolerance


@waiting
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_replay_folds_where_the_run_did(method: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Eight steps in windows of three, a hash (which folds) after five and eight: the same bits from the journal."""
    model = tiny("gpt2", dtype)
    optimizer = train(method, model, lr=1e-2, fold_every=3)
    with Journal.create(tmp_path / "j.zoj", optimizer.header()) as journal:
        optimizer.record = journal.append
        for step in range(1, 9):
            optimizer.step(loss, batch_for("gpt2"))
            if step in (5, 8):
                optimizer.fold()
                journal.append(HashRecord(step, current_sha256(optimizer)))
    again = tiny("gpt2", dtype)
    assert zotune.replay(tmp_path / "j.zoj", again)["verified"]
    assert same_bits(weights(again), weights(model))


@waiting
def test_a_state_saved_inside_a_window_continues_bit_identically(method: str) -> None:
    """The waiting sums travel with the state; the weights alone are behind."""
    straight, half = (train(method, tiny("llama"), lr=1e-2, fold_every=3) for _ in range(2))
    for _ in range(7):
        straight.step(loss, batch_for("llama"))
    for _ in range(4):
        half.step(loss, batch_for("llama"))
    assert half.perturber.pending
    state, held = copy.deepcopy(half.state_dict()), copy.deepcopy(half.model.state_dict())
    other = train(method, tiny("llama", seed=1), lr=1e-9, fold_every=3)
    other.model.load_state_dict(held)
    other.load_state_dict(state)
    for group, given in zip(other.param_groups, half.param_groups, strict=True):
        group["lr"] = given["lr"]
    for _ in range(3):
        other.step(loss, batch_for("llama"))
    assert same_bits(weights(other.model), weights(straight.model))


@waiting
def test_nothing_is_written_for_a_sum_of_zero(method: str) -> None:
    """With lr 0 minus zeros stay minus zeros, folds included."""
    model = Weights(a=torch.full((5, 4), -0.0), b=torch.full((3,), -0.0))
    before = weights(model)
    optimizer = train(method, model, lr=0.0, fold_every=3)
    for _ in range(7):
        optimizer.step(of(lambda theta: theta.sum()), ROWS)
    optimizer.fold()
    assert same_bits(weights(model), before)


@waiting
def test_one_window_is_one_adapter(method: str) -> None:
    """Within a window the change of a matrix has the rank of the method's V: one LoRA adapter."""
    model = Weights(a=normals((40, 30), 1, torch.float64))
    before = flat(model)
    optimizer = train(method, model, lr=1e-2, interval=4)
    for _ in range(4):
        optimizer.step(of(lambda theta: theta.sin().sum()), ROWS)
    change: Tensor = (flat(model) - before).view(40, 30)
    assert int(torch.linalg.matrix_rank(change, rtol=1e-9)) == optimizer.arguments["rank"]
