"""Packed bases: loaded, hashed whole, trained with LoRA, resumed and replayed; what cannot work says so."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests import models

from zotune.config import TrainConfig
from zotune.errors import ConfigError, RunError, UserError
from zotune.export import export
from zotune.load import load_model, meta_model
from zotune.quantised.layers import packed_layers
from zotune.quantised.load import imported
from zotune.revisit import evaluate_run, replay, replay_onto
from zotune.run import RunPaths
from zotune.train import train
from zotune.virtual_tokens import peft_quiet
from zotune.watch import Quiet
from zotune.weights import base_sha256

one_thread = models.one_thread
Packed = Callable[..., TrainConfig]
kinds = pytest.mark.parametrize("kind", ["int8", "int4", "nf4", "llm_int8"])


@kinds
def test_linear_layers_are_packed_and_the_rest_is_not(packed: Packed, kind: str) -> None:
    """Seven linear layers a block; embeddings, norms and head keep the dtype that was asked for."""
    settings = packed(kind, scope="norms")
    model: Any = load_model(settings)
    assert len(packed_layers(model)) == 14
    assert not any(layer.weight.requires_grad for layer in packed_layers(model).values())
    assert {p.dtype for p in (model.model.embed_tokens.weight, model.model.norm.weight, model.lm_head.weight)} == {
        getattr(torch, settings.dtype)
    }


@kinds
def test_a_forward_changes_no_packed_bit(packed: Packed, kind: str) -> None:
    """bitsandbytes would repack 4-bit weights in its first forward: the codes as they lie in memory stay."""
    model: Any = load_model(packed(kind, scope="norms"))
    inner = {
        name: getattr(layer.weight, "qdata", layer.weight).detach().clone()
        for name, layer in packed_layers(model).items()
    }
    before = base_sha256(model)
    with torch.inference_mode():
        model(torch.tensor([[1, 2, 3]]))
    for name, layer in packed_layers(model).items():
        assert torch.equal(getattr(layer.weight, "qdata", layer.weight), inner[name])
    assert base_sha256(model) == before


@kinds
def test_one_changed_code_changes_the_hash(packed: Packed, kind: str) -> None:
    """The base's hash covers the codes and the scales of the first and of the last packed layer."""
    model = load_model(packed(kind, scope="norms"))
    seen = {base_sha256(model)}
    layers: list[Any] = list(packed_layers(model).values())
    for layer in (layers[0], layers[-1]):
        weight = layer.weight
        scale = (
            weight.scale
            if hasattr(weight, "scale")
            else (weight.quant_state.absmax if kind == "nf4" else layer.state.SCB if weight.SCB is None else weight.SCB)
        )
        with torch.no_grad():
            getattr(weight, "qdata", weight.data).view(-1)[5] ^= 1
            seen.add(base_sha256(model))
            scale.view(-1)[-1] *= 1.5
            seen.add(base_sha256(model))
    assert len(seen) == 5


@kinds
def test_lora_trains_resumes_and_replays(packed: Packed, disturbed: Callable[..., Any], kind: str) -> None:
    """Interrupted twice the run ends with the same bytes; replayed without data it has the same hash and accuracy."""
    settings = packed(kind, scope="lora", lora_rank=2, eval_every=3, snapshot_every=2)
    result = disturbed(settings)
    assert replay(result["run"], True, Quiet())["verified"]
    assert evaluate_run(settings, result["run"], Quiet())["accuracy"] == result["accuracy_after"]
    assert result["loss_after"] != result["loss_before"]


@pytest.mark.parametrize("kind", ["int8", "int4", "nf4"])
def test_both_signs_ride_in_one_forward(packed: Packed, said: Callable[..., str], kind: str) -> None:
    """Weight-only formats treat examples independently."""
    assert "2 forwards, one batch for both sides" in said(packed(kind, scope="lora"))


def test_rounded_activations_fall_back_with_the_reason(packed: Packed, said: Callable[..., str]) -> None:
    """LLM.int8() rounds activations: what shares a batch changes its losses, which the first batch shows."""
    assert "one at a time (lanes differ from single evaluations by" in said(packed("llm_int8", scope="lora"))


def test_another_base_is_refused(packed: Packed, wide: Path, tmp_path: Path) -> None:
    """A weight that was changed under the run, too little to be seen in another layer, stops the replay."""
    shutil.copytree(wide, tmp_path / "base")
    settings = packed("int8", scope="lora", model=str(tmp_path / "base"), steps=2)
    train(settings, Quiet())
    tensors = load_file(tmp_path / "base" / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][3, 5] += 0.5
    save_file(tensors, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    with pytest.raises(RunError, match="the base model .* has changed since the run began"):
        replay(settings.output_dir, True, Quiet())


def test_exports_an_adapter_and_refuses_to_merge(packed: Packed, tmp_path: Path) -> None:
    """PEFT loads the adapter onto the same packed base and computes the same; merging would round it away."""
    from peft import PeftModel

    settings = packed("int8", scope="lora", lora_rank=2)
    run = train(settings, Quiet())["run"]
    with pytest.raises(ConfigError, match="numbers beside packed weights, which would round them away. Remedy: --adap"):
        export(run, tmp_path / "merged", Quiet(), form="merge")
    export(run, tmp_path / "adapter", Quiet())
    trained = load_model(settings)
    replay_onto(RunPaths(run), trained, Quiet())
    base: Any = load_model(packed("int8", scope="norms"))
    with peft_quiet(0):
        loaded = PeftModel.from_pretrained(base, tmp_path / "adapter")
    ids = torch.tensor([[1, 7, 9, 11]])
    with torch.inference_mode():
        assert torch.equal(loaded(ids).logits, trained(ids).logits)


@pytest.mark.parametrize("scope", ["full", "last:1", "block:0"])
def test_a_scope_of_places_is_refused(packed: Packed, scope: str) -> None:
    """It would silently leave out every packed layer."""
    with pytest.raises(ConfigError, match=f"scope '{scope}' would leave out 14 linear layers .*Remedy: --scope lora"):
        train(packed("int8", scope=scope), Quiet())


def test_a_scope_of_places_may_cut_another(packed: Packed) -> None:
    """lora&last:1 trains the adapters of the last block."""
    assert train(packed("int8", scope="lora&last:1", steps=1), Quiet())["steps"] == 1


def test_what_cannot_work_is_said(packed: Packed, config: Packed, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing library, a dtype that would be rounded, a plan, a model without linear layers."""
    with pytest.raises(UserError, match=r"quantize x needs no_such_library. Remedy: pip install 'zotune\[quant\]'"):
        imported("no_such_library", "x")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match="quantize nf4 needs bitsandbytes. Remedy"):
        load_model(config(quantize="nf4"))
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="llm_int8 multiplies what was rounded to float16. Remedy: --dtype float16"):
        load_model(packed("llm_int8", dtype="float32"))
    with pytest.raises(UserError, match=r"cannot be packed as int4 \(a row of int4 .* Remedy: --quantize int8 or nf4"):
        load_model(packed("int4", model=config().model, scope="norms"))
    with pytest.raises(ConfigError, match="such a run cannot be planned. Remedy: leave --quantize out"):
        meta_model(config(quantize="int8"))
    with pytest.raises(ConfigError, match="GPT2LMHeadModel has none that it could. Remedy: leave --quantize out"):
        load_model(packed("int8", model=config("gpt2").model))
