"""Sensitive weights: the right ones are found, they alone are trained, over plain and over packed bases."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests import models
from tests.tiny import save_tiny
from torch import nn

from zotune.config import TrainConfig
from zotune.errors import ConfigError, RunError
from zotune.export import export
from zotune.load import load_model
from zotune.methods import METHODS
from zotune.revisit import replay, replay_onto
from zotune.run import RunPaths
from zotune.sensitive import Sensitive, find, largest, read_mask
from zotune.session import Session
from zotune.train import train
from zotune.watch import Quiet

one_thread = models.one_thread
Config = Callable[..., TrainConfig]
IDS = torch.tensor([[1, 7, 9, 11], [1, 5, 6, 7]])
BATCH = {"input_ids": IDS, "labels": IDS}


@pytest.fixture
def mask(config: Config, tmp_path: Path) -> Path:
    """A mask of 2 % of the tiny llama's linear weights, by its training rows as plain text."""
    find(config(label_words=None, template=None, eval=None), 0.02, tmp_path / "mask.safetensors", Quiet())
    return tmp_path / "mask.safetensors"


def sensitive(model: nn.Module) -> dict[str, Sensitive]:
    return {name: module for name, module in model.named_modules() if isinstance(module, Sensitive)}


@pytest.mark.parametrize("count", [1, 3, 5, 7, 11, 12])
def test_the_largest_of_all_tensors_together(count: int) -> None:
    """As many as asked for, equal ones in order, places ascending, over tensors of any shape."""
    scores = {
        "a": torch.tensor([[3.0, 1.0, 0.0], [3.0, 2.0, 3.0]]),
        "b": torch.tensor([3.0, 5.0, 0.0, 1e-30, 4.0, 1.0]),
    }
    flat = [(float(v), name, place) for name, s in scores.items() for place, v in enumerate(s.flatten())]
    expected = sorted(sorted(flat, key=lambda each: -each[0])[:count], key=lambda each: (each[1], each[2]))
    found = largest(scores, count)
    assert [(name, place) for name, places in found.items() for place in places.tolist()] == [
        (name, place) for _, name, place in expected
    ]


def test_the_mask_is_that_of_the_mean_squared_gradient(config: Config, mask: Path) -> None:
    """Every row's gradient by hand: the 2 % of the linear weights with the largest mean square, and their values."""
    session = Session(config(label_words=None, template=None, eval=None))
    layers = {n: m for n, m in session.model.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"}
    squares = {name: torch.zeros(layer.weight.shape) for name, layer in layers.items()}
    for example in session.examples:
        session.model.zero_grad()
        session.objective(session.model, session.objective.collate([example])).sum().backward()
        for name, layer in layers.items():
            assert layer.weight.grad is not None
            squares[name] += layer.weight.grad**2
    joined = torch.cat([square.flatten() for square in squares.values()])
    found, kept = read_mask(mask), round(0.02 * joined.numel())
    assert sum(len(index) for index, _ in found.values()) == kept
    least = joined.sort(descending=True).values[kept - 1]
    for name, (index, values) in found.items():
        assert float(squares[name].flatten()[index].min()) >= float(least) * (1 - 1e-4)
        assert torch.equal(layers[name].weight.detach().flatten()[index], values)


def test_only_the_mask_moves(config: Config, mask: Path, tmp_path: Path) -> None:
    """A run's exported weights differ from the base at the mask's places alone, and compute the trained logits."""
    settings = config(scope="sensitive", sensitive=mask)
    result = train(settings, Quiet())
    assert replay(result["run"], True, Quiet())["verified"]
    export(result["run"], tmp_path / "out", Quiet(), form="merge")
    trained, merged = load_model(settings), load_model(config(model=str(tmp_path / "out")))
    replay_onto(RunPaths(result["run"]), trained, Quiet())
    with torch.inference_mode():
        torch.testing.assert_close(merged(IDS).logits, trained(IDS).logits, rtol=1e-5, atol=1e-5)
    places, base = read_mask(mask), dict(load_model(config()).named_parameters())
    for name, after in merged.named_parameters():
        changed = (after != base[name]).flatten().nonzero().flatten()
        index = places.get(name.removesuffix(".weight"), (torch.empty(0),))[0]
        assert set(changed.tolist()) <= set(index.tolist()), name
        assert len(changed) >= 0.9 * len(index)


def test_a_perturbed_number_is_a_perturbed_weight(config: Config, mask: Path) -> None:
    """Lanes, single evaluations and a weight that was written agree on the losses at both sides."""
    settings = config(scope="sensitive", sensitive=mask)
    optimizer = METHODS["mezo"].build(load_model(settings), lr=0.0, eps=1e-2, scope="sensitive")
    points = optimizer.estimator.points(0, 0)
    together = optimizer.evaluator.losses(models.loss, BATCH, points)
    assert optimizer.evaluator.mode == "lanes"
    plain: Any = load_model(config())
    for point, losses in zip(points, together, strict=True):
        written: Any = load_model(config())
        for name, module in sensitive(optimizer.model).items():
            target = models.target_of(optimizer, f"{name}.sensitive_values")
            z = optimizer.direction.block(target, point.key, 0, len(module.index))
            with torch.no_grad():
                written.get_submodule(name).weight.view(-1)[module.index] += point.scale * z
        with torch.inference_mode():
            torch.testing.assert_close(losses, models.loss(written, BATCH).double(), rtol=0, atol=3e-6)
    with torch.inference_mode():
        assert float((together - models.loss(plain, BATCH)).abs().min()) > 1e-4


@pytest.mark.parametrize("method", ["mezo", "hizoo", "conmezo", "fzoo", "kerzoo"])
def test_any_dense_method_trains_the_mask(config: Config, mask: Path, method: str) -> None:
    """Three steps over the mask's numbers, one tensor a layer."""
    model = load_model(config(scope="sensitive", sensitive=mask))
    optimizer = models.train(method, model, scope="sensitive")
    for _ in range(3):
        optimizer.step(models.loss, BATCH)
    assert all(bool(module.sensitive_values.any()) for module in sensitive(model).values())


def test_blocks_of_numbers_give_the_same(config: Config, mask: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many products are made at one time changes rounding alone."""
    model = load_model(config(scope="sensitive", sensitive=mask))
    found = []
    with torch.no_grad():
        for module in sensitive(model).values():
            module.sensitive_values += 0.5
    for block in (1, 30, 1 << 20):
        monkeypatch.setattr("zotune.sensitive._BLOCK", block)
        with torch.inference_mode():
            found.append(model(IDS).logits)
    torch.testing.assert_close(found[0], found[2], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[1], found[2], rtol=1e-5, atol=1e-5)


def test_over_a_packed_base_the_mask_keeps_its_precision(config: Config, tmp_path: Path) -> None:
    """With every weight sensitive the packed model computes what the plain one does; a run trains and replays."""
    if find_spec("torchao") is None or find_spec("accelerate") is None:
        pytest.skip("torchao is not installed: pip install 'zotune[quant]'")
    save_tiny("llama", tmp_path / "wide", hidden_size=64, intermediate_size=128, num_hidden_layers=2)
    wide = {"model": str(tmp_path / "wide")}
    text = config(**wide, label_words=None, template=None, eval=None)
    for share in (0.01, 0.999999):
        find(text, share, tmp_path / f"{share}.safetensors", Quiet())
    packed = {**wide, "quantize": "int4"}
    with torch.inference_mode():
        plain = load_model(config(**wide))(IDS).logits
        rounded = load_model(config(**packed, scope="norms"))(IDS).logits
        whole = load_model(config(**packed, scope="sensitive", sensitive=tmp_path / "0.999999.safetensors"))(IDS).logits
    torch.testing.assert_close(whole, plain, rtol=1e-4, atol=1e-4)
    assert float((rounded - plain).abs().max()) > 0.05
    settings = config(**packed, scope="sensitive", sensitive=tmp_path / "0.01.safetensors")
    run = train(settings, Quiet())["run"]
    assert replay(run, True, Quiet())["verified"]
    with pytest.raises(ConfigError, match="numbers beside packed weights, .* Remedy: --delta"):
        export(run, tmp_path / "merged", Quiet(), form="merge")
    assert export(run, tmp_path / "delta", Quiet(), form="delta")["bytes"] > 0


def test_another_mask_is_refused_by_a_run(config: Config, mask: Path) -> None:
    """The base's hash covers the mask: a resume or replay with other places stops."""
    settings = config(scope="sensitive", sensitive=mask)
    train(settings, Quiet())
    find(config(label_words=None, template=None, eval=None), 0.03, mask, Quiet())
    with pytest.raises(RunError, match="differ|is .*here and|has changed"):
        replay(settings.output_dir, True, Quiet())


def _other_weights(named: dict[str, Any]) -> None:
    named[next(name for name in named if name.endswith(".values"))][0] += 1


def _other_layer(named: dict[str, Any]) -> None:
    for part in ("index", "values"):
        named[f"no.such.{part}"] = named[f"model.layers.0.mlp.up_proj.{part}"].clone()


def _far_place(named: dict[str, Any]) -> None:
    named["model.layers.0.mlp.up_proj.index"][-1] = 10**6


def _descending(named: dict[str, Any]) -> None:
    name = next(name for name, index in named.items() if name.endswith(".index") and len(index) > 1)
    named[name] = named[name].flip(0).contiguous()


def _half(named: dict[str, Any]) -> None:
    del named["model.layers.0.mlp.up_proj.values"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_other_weights, "was made of other weights"),
        (_other_layer, "is a mask of another model: it names no.such"),
        (_far_place, "is a mask of another model: it names model.layers.0.mlp.up_proj"),
        (_descending, "is no mask of sensitive weights"),
        (_half, "is no mask of sensitive weights"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(config: Config, mask: Path, spoil: Any, message: str) -> None:
    """Each with what is wrong and a remedy."""
    named = load_file(mask)
    spoil(named)
    save_file(named, mask, {"format": "zotune sensitive weights 1"})
    with pytest.raises(ConfigError, match=f"{message}.*Remedy: "):
        load_model(config(scope="sensitive", sensitive=mask))


def test_what_is_no_mask_is_refused(config: Config, tmp_path: Path) -> None:
    """No file, a file of something else, no mask at all, a share that is none."""
    with pytest.raises(ConfigError, match="scope sensitive needs a mask. Remedy: --sensitive FILE"):
        load_model(config(scope="sensitive"))
    with pytest.raises(ConfigError, match="cannot be read: .*Remedy: make it with"):
        load_model(config(scope="sensitive", sensitive=tmp_path / "none"))
    shutil.copy(Path(config().model) / "model.safetensors", tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match="is no mask of sensitive weights. Remedy"):
        load_model(config(scope="sensitive", sensitive=tmp_path / "model.safetensors"))
    with pytest.raises(ConfigError, match="share must be between 0 and 1, got 1.5. Remedy: 0.001"):
        find(config(), 1.5, tmp_path / "mask", Quiet())
    with pytest.raises(RunError, match="cannot be written: .*Remedy: choose another --to"):
        find(config(label_words=None, template=None, eval=None), 0.01, tmp_path / "no" / "mask", Quiet())
