"""What a scope adds to a model, and what it cannot add."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests import models

from zotune.adapters import ADD, add_for_scope, added_by, can_merge, for_others, is_adapter
from zotune.config import TrainConfig
from zotune.errors import ConfigError, UserError
from zotune.load import load_model

Config = Callable[..., TrainConfig]


def test_lora_where_it_cannot_go(config: Config) -> None:
    """Unknown targets are one sentence with the flag."""
    with pytest.raises(ConfigError, match="LoRA cannot be added: .*Remedy: --lora-targets all-linear, or"):
        load_model(config(scope="lora", lora_targets=["no_such"]))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_lora_on_all_linear_layers(config: Config, family: str) -> None:
    """PEFT's word for them reaches every one but the head, also where they are Conv1D."""
    pytest.importorskip("peft")
    base: Any = load_model(config(family))
    linear = {name for name, module in base.named_modules() if type(module).__name__ in ("Linear", "Conv1D")}
    model = load_model(config(family, scope="lora", lora_targets=["all-linear"]))
    adapted = {name for name, module in model.named_modules() if hasattr(module, "lora_A")}
    assert {name.removeprefix("base_model.model.") for name in adapted} == linear - {"lm_head"} and adapted


@pytest.mark.parametrize(
    ("scope", "name", "adapter", "merges"),
    [
        ("full", None, False, True),
        ("regex:lora", None, False, True),
        ("lora", "lora", True, True),
        ("last:2 & lora", "lora", True, True),
        ("lora&lora", "lora", True, True),
        ("prefix", "prefix", True, False),
        ("prompt&first:1", "prompt", True, False),
        ("bank", "bank", True, True),
        ("head", "head", False, True),
        ("sensitive", "sensitive", False, True),
        ("scales", "scales", False, True),
    ],
)
def test_what_a_scope_adds(scope: str, name: str | None, adapter: bool, merges: bool) -> None:
    """A part that is exactly a name adds something; whether it lies beside the weights, and can become part of them."""
    assert (added_by(scope), is_adapter(scope), can_merge(scope)) == (name, adapter, merges)
    assert set(ADD) == {"lora", "prefix", "prompt", "head", "scales", "bank", "sensitive"}


def test_two_additions_are_one_too_many() -> None:
    """The first two are named."""
    with pytest.raises(
        ConfigError, match="scope 'lora & head' names lora and head. Remedy: train one of them at a time"
    ):
        added_by("lora & head")


def test_nothing_is_added_unasked(config: Config) -> None:
    """Without such a part the model stays the very same object, and is what others read."""
    model = load_model(config())
    assert add_for_scope(model, config(scope="norms&last:1")) is model and for_others(model) is model


@pytest.mark.parametrize(("blocks", "alpha"), [(None, 6.0), ("atoms", 6.0 * 3**2)])
def test_one_atom_at_a_time_is_scaled_by_alpha_times_rank(config: Config, blocks: str | None, alpha: float) -> None:
    """LoRA divides alpha by its rank: 6 / 3 for all of it, 6 * 3 for an atom (arXiv 2605.19767)."""
    pytest.importorskip("peft")
    settings = config(scope="lora", lora_rank=3, lora_alpha=6.0, blocks=blocks, lora_targets=["q_proj"])
    model: Any = load_model(settings)
    assert model.peft_config["default"].lora_alpha == alpha
    layer = next(module for name, module in model.named_modules() if name.endswith("layers.0.self_attn.q_proj"))
    assert layer.scaling["default"] == alpha / 3


def test_lora_without_its_library(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing, and the command that brings it."""
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"scope lora needs PEFT. Remedy: pip install 'zotune\[peft\]'"):
        add_for_scope(load_model(config()), config(scope="lora"))


def test_others_read_no_module_of_ours(config: Config) -> None:
    """A bank becomes an adapter of PEFT with the same logits; none of zotune's classes is left in it."""
    pytest.importorskip("peft")
    ids = torch.arange(6, 18).view(2, 6)
    model: Any = load_model(config(scope="bank"))
    optimizer = models.train("lozo", model, lr=1e-2, scope="bank")
    optimizer.step(models.loss, {"input_ids": ids, "labels": ids})
    optimizer.fold()
    with torch.inference_mode():
        expected = model(input_ids=ids).logits
        found: Any = for_others(model)
        torch.testing.assert_close(found(input_ids=ids).logits, expected, rtol=1e-5, atol=1e-5)
    assert not [name for name, each in found.named_modules() if type(each).__module__.startswith("zotune")]
    assert any("lora" in name for name, _ in found.named_parameters())
