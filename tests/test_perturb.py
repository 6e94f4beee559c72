"""Evaluating without writing: generation, ties, coverage, buffers, the self-check, later batches, label words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import models
from tests.models import (
    against_copies,
    batch_for,
    displaced,
    inputs,
    loss,
    normals,
    same_bits,
    seeded,
    squares,
    takes_closures,
    tiny,
    train,
    weights,
)
from torch import Tensor, nn

from zotune.direction import Dense
from zotune.errors import CoverageError, UserError
from zotune.estimate import Point
from zotune.noise import Key
from zotune.perturb import Perturber

one_thread = models.one_thread
methods = pytest.mark.parametrize("method", models.METHOD_ROWS)
POINT = Point(Key(0, 0), 0.05)


# --- one point, any call ---------------------------------------------------------------------------------------------


@methods
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "t5", "qwen3_moe"])
def test_generation_works_at_a_point(method: str, family: str) -> None:
    """Inside `at(point)` generate() gives the tokens of the explicit copy, which are not those of the model itself."""
    model = tiny(family, torch.float64)
    optimizer = train(method, model)
    point = Point(Key(0, 0), 0.3)
    ids = batch_for(family, rows=2)["input_ids"]
    options: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    options["attention_mask"] = torch.ones_like(ids)
    with torch.inference_mode():
        with optimizer.perturber.at(point):
            found = model.generate(ids, **options)
        assert torch.equal(found, displaced(optimizer, point).generate(ids, **options))
        assert not torch.equal(found, model.generate(ids, **options))


@pytest.mark.parametrize("family", ["qwen3", "gpt2", "opt", "bert", "t5"])
def test_tied_weights_are_one_parameter_used_in_two_places(family: str) -> None:
    """The output layer and the embedding share one direction: one target, two sites, one stand-in."""
    model = tiny(family)
    optimizer = train("mezo", model)
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    assert head.weight is table.weight
    (name,) = [n for n, p in model.named_parameters() if p is table.weight]
    assert len(optimizer.perturber._sites[name]) >= 2
    assert sum(t.data.numel() for t in optimizer.perturber.targets()) == sum(p.numel() for p in model.parameters())
    with optimizer.perturber.at(POINT):
        assert head.weight is table.weight
    assert head.weight is table.weight and isinstance(head.weight, nn.Parameter)


def test_an_error_inside_the_context_restores_the_model() -> None:
    """Parameters are back in their modules, and training flags as before, when the forward pass raises."""
    model = tiny("llama").train()
    before, held = weights(model), dict(model.named_parameters())
    perturber = train("mezo", model).perturber
    with pytest.raises(ZeroDivisionError), perturber.at(POINT):
        raise ZeroDivisionError
    assert all(module.training for module in model.modules())
    assert {name: id(p) for name, p in model.named_parameters()} == {name: id(p) for name, p in held.items()}
    assert same_bits(weights(model), before)


def test_a_layer_that_is_used_twice_shows_its_first_inputs() -> None:
    """A direction sees each weight once in a forward, whatever comes later."""
    layer = nn.Linear(4, 4)
    shown: list[Tensor] = []
    perturber = Perturber(layer, ["weight", "bias"], Dense())
    perturber.direction.see = lambda target, key, inputs, transposed: shown.append(inputs)  # type: ignore[method-assign]
    first, second = models.normals((2, 3, 4), 1), models.normals((2, 3, 4), 2)
    with torch.no_grad(), perturber.watched(POINT.key):
        layer(first)
        layer(second)
    assert len(shown) == 1 and torch.equal(shown[0], first.reshape(-1, 4))


def test_an_unknown_name_is_refused() -> None:
    """A name that the model does not have is in the message."""
    with pytest.raises(UserError, match="'no.such'"):
        Perturber(nn.Linear(2, 2), ["weight", "no.such"], Dense())


# --- coverage, buffers, writes ---------------------------------------------------------------------------------------


class Spare(nn.Module):
    """A linear layer that is used, and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.spare = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


@methods
@pytest.mark.parametrize("batch", [True, False])
def test_a_parameter_that_no_forward_uses_is_named(method: str, batch: bool) -> None:
    """Coverage is an error that names the parameters, with a batch and with a closure; coverage=False accepts it."""
    if not batch and not takes_closures(method):
        pytest.skip("refuses closures")
    model, data = seeded(Spare), inputs(3, 4)
    call: Any = squares if batch else lambda: squares(model, data)
    optimizer = train(method, model, lr=0.0)
    with pytest.raises(CoverageError, match=r"of 4 .*spare\.") as caught:
        for _ in range(50):  # a method that moves a part comes to it
            named = optimizer.perturber.moved(optimizer.estimator.points(0, optimizer.steps))
            optimizer.step(call, data if batch else None)
    if len(named) == 4:
        assert "2 of 4" in str(caught.value) and "spare.weight, spare.bias" in str(caught.value)
    assert "used.weight" not in str(caught.value) and "Remedy" in str(caught.value)
    proposed = re.search(r"adding '(&regex:\S+)' to the scope", str(caught.value))
    assert proposed is not None and "coverage=False" in str(caught.value)
    if len(named) == 4:
        train(method, model, scope="full" + proposed[1]).step(call, data if batch else None)
    train(method, model, coverage=False).step(call, data if batch else None)
    train(method, model, scope="regex:used").step(call, data if batch else None)


class Normalised(nn.Module):
    """Convolution, batch norm with running statistics, dropout, and a counter in its forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.Dropout(0.5)
        self.head = nn.Linear(4, 2)
        self.slope = nn.PReLU(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.slope(self.norm(self.conv(x)))).mean(-1))


@methods
def test_buffers_flags_and_dropout_stay_out_of_the_loss(method: str) -> None:
    """A model in training mode is evaluated in eval mode: running statistics, flags and random state do not move."""
    model = seeded(Normalised).train()
    model.norm.running_mean.copy_(normals(4, 1))
    model.drop.eval()
    before, flags = weights(model), [m.training for m in model.modules()]
    optimizer = train(method, model)
    against_copies_of = train(method, model.eval())
    for module, flag in zip(model.modules(), flags, strict=True):
        module.training = flag
    for _ in range(3):
        optimizer.estimate(squares, inputs(5, 3, 9))
    assert same_bits(weights(model), before)
    assert [m.training for m in model.modules()] == flags
    assert optimizer.evaluator.mode == "lanes"
    model.eval()
    against_copies(against_copies_of, squares, inputs(5, 3, 9))


class Writer(nn.Module):
    """Rescales its own weight in the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(normals((4, 4), 1))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.weight.mul_(0.5)
        return x @ self.weight


@pytest.mark.parametrize("lanes", ["auto", "off"])
def test_a_forward_pass_that_writes_its_parameter_is_refused(lanes: Any) -> None:
    """Named, with a remedy, and nothing is written."""
    model = Writer()
    before = weights(model)
    with pytest.raises(UserError, match="writes its parameter weight during the forward pass"):
        train("mezo", model, lanes=lanes).estimate(squares, inputs(3, 4))
    assert same_bits(weights(model), before)


def test_spread_over_devices(tmp_path: Path) -> None:
    """accelerate's hooks on every module change no loss and no weight; weights that wait elsewhere are refused.

    Several devices cannot be had on a CPU: what this shows is that stand-ins and hooks get along.
    """
    from accelerate import dispatch_model

    found = []
    for hooked in (False, True):
        model = tiny("llama")
        if hooked:
            model = dispatch_model(model, {"": "cpu"}, force_hooks=True)
            assert sum(hasattr(module, "_hf_hook") for module in model.modules()) > 10
        optimizer = train("mezo", model, lr=0.1, queries=2)
        found.append(([optimizer.step(loss, batch_for("llama", seed=step)) for step in range(3)], weights(model)))
    assert found[0][0] == found[1][0] and same_bits(found[0][1], found[1][1])
    modules = dict.fromkeys(["model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"], "cpu")
    layers = {f"model.layers.{i}": "disk" if i else "cpu" for i in range(len(tiny("llama").model.layers))}
    away = dispatch_model(tiny("llama"), {**modules, **layers}, "cpu", offload_dir=tmp_path, force_hooks=True)
    with pytest.raises(UserError, match=r"model.layers.1.self_attn.q_proj.weight waits elsewhere .* Remedy"):
        train("mezo", away)
    trained = train("mezo", away, scope="regex:layers.0", coverage=False)
    whole = train("mezo", tiny("llama"), scope="regex:layers.0")
    assert trained.step(loss, batch_for("llama")) == whole.step(loss, batch_for("llama"))
