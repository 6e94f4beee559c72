"""Families that the method contract does not run: steps, lanes or the named reason against them, LoRA, replay."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from tests.models import (
    FAMILIES,
    MORE_FAMILIES,
    batch_for,
    displaced,
    loss,
    one_thread,
    same_bits,
    tiny,
    train,
    weights,
)
from torch import nn

import zotune
from zotune.journal import Journal
from zotune.optimizer import ZerothOrder

one_thread = one_thread
# Why a family's points are evaluated one at a time.
SINGLY = {
    "mixtral": "_grouped_mm on model.layers.0.mlp.experts.gate_up_proj has no lane rule",
    "deberta": "linear takes deberta.encoder.rel_embeddings.weight as its input",
    "qwen2_vl": "the batch is not a mapping of tensors that share their first dimension",
}
SINGLY_LORA = {
    "deberta": "linear meets an activation of shape (1, 8, 16), not stacked by example",
    "qwen2_vl": SINGLY["qwen2_vl"],
}
TARGETS = {"cnn": ["body.0", "head"], "mixtral": ["q_proj", "v_proj"], "qwen3_moe": ["q_proj", "v_proj"]}


def stepped(path: Path, optimizer: ZerothOrder, family: str, steps: int = 3) -> None:
    """A few steps in a journal."""
    with Journal.create(path, optimizer.header()) as journal:
        optimizer.record = journal.append
        for _ in range(steps):
            optimizer.step(loss, batch_for(family))


@pytest.mark.parametrize("method", ["mezo", "lozo"])
@pytest.mark.parametrize("family", MORE_FAMILIES)
def test_steps_lanes_and_replay(family: str, method: str, tmp_path: Path) -> None:
    """Losses on both sides are those of written copies; steps move the weights, and the journal gives them again."""
    model, batch = tiny(family), batch_for(family)
    optimizer = train(method, model, lr=1e-3, seed=5)
    before, points = weights(model), optimizer.estimator.points(5, 0)
    found = optimizer.evaluator.losses(loss, batch, points)
    with torch.inference_mode():
        expected = torch.stack([loss(displaced(optimizer, point), batch) for point in points])
    torch.testing.assert_close(found.float(), expected, rtol=1e-5, atol=1e-5)
    assert float((found[0] - found[1]).abs().max()) > 1e-4 and same_bits(weights(model), before)
    mode = "sequential" if family in SINGLY else "lanes"
    assert (optimizer.evaluator.mode, optimizer.evaluator.reason) == (mode, SINGLY.get(family, ""))
    stepped(tmp_path / "journal.zoj", optimizer, family)
    moved = [name for name, value in weights(model).items() if not torch.equal(value, before[name])]
    assert set(moved) >= {name for name, p in model.named_parameters() if p.ndim > 1}
    again = tiny(family)
    zotune.replay(tmp_path / "journal.zoj", again)
    assert same_bits(weights(again), weights(model))


def adapted(family: str) -> nn.Module:
    """LoRA on every linear layer but the head, with adapters that are not zero. Of experts their attention alone."""
    peft = pytest.importorskip("peft")
    targets = TARGETS.get(family, "all-linear")
    settings = peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
    with torch.random.fork_rng(), warnings.catch_warnings():
        torch.manual_seed(3)
        warnings.simplefilter("ignore")  # PEFT on attributes that are being renamed, and on settings it corrects
        model: nn.Module = peft.get_peft_model(tiny(family), settings)
    return model.eval()


@pytest.mark.parametrize("family", [*FAMILIES, *MORE_FAMILIES])
def test_lora(family: str, tmp_path: Path) -> None:
    """Adapters alone move, in lanes where the family can; replayed onto the same adapters they end the same."""
    model, batch = adapted(family), batch_for(family)
    optimizer = train("mezo", model, lr=1e-2, scope="lora", seed=5)
    before, points = weights(model), optimizer.estimator.points(5, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = optimizer.evaluator.losses(loss, batch, points)
    with torch.inference_mode():
        expected = torch.stack([loss(displaced(optimizer, point), batch) for point in points])
    torch.testing.assert_close(found.float(), expected, rtol=1e-5, atol=1e-5)
    mode = "sequential" if family in SINGLY_LORA else "lanes"
    assert (optimizer.evaluator.mode, optimizer.evaluator.reason) == (mode, SINGLY_LORA.get(family, ""))
    stepped(tmp_path / "journal.zoj", optimizer, family)
    moved = {name for name, value in weights(model).items() if not torch.equal(value, before[name])}
    assert moved == {name for name, _ in model.named_parameters() if "lora_" in name} == set(optimizer.names)
    again = adapted(family)
    zotune.replay(tmp_path / "journal.zoj", again)
    assert same_bits(weights(again), weights(model))


def test_a_vision_language_model_with_a_closure() -> None:
    """Text and pictures in a plain closure: the steps are those of the objective on its batch, one at a time."""
    batch, found = batch_for("llava"), []
    for closure in (True, False):
        model = tiny("llava")
        optimizer = zotune.MeZO(model, lr=1e-3, eps=1e-2, seed=2, lanes="off")
        for _ in range(3):
            optimizer.step(lambda own=model: loss(own, batch).mean()) if closure else optimizer.step(loss, batch)
        found.append(weights(model))
        assert optimizer.steps == 3
    first = next(iter(weights(tiny("llava")).items()))
    assert not torch.equal(found[0][first[0]], first[1])
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=1e-4, atol=1e-5)
