"""The scales of packed layers: the same numbers as the library's product, trained, and given back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests import models

from zotune.config import TrainConfig
from zotune.errors import ConfigError
from zotune.export import export
from zotune.load import load_model, quiet
from zotune.methods import QZO
from zotune.quantised.layers import packed_layers
from zotune.quantised.load import settle
from zotune.quantised.scales import add_scales, settle_scales
from zotune.revisit import evaluate_run, replay, replay_onto
from zotune.run import RunPaths
from zotune.train import train
from zotune.watch import Quiet

one_thread = models.one_thread
Packed = Callable[..., TrainConfig]
weight_only = pytest.mark.parametrize("kind", ["int8", "int4", "nf4"])
IDS = torch.tensor([[1, 7, 9, 11], [1, 5, 6, 7]])


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(IDS).logits
    return found


@weight_only
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_untrained_scales_compute_what_the_library_does(packed: Packed, kind: str, dtype: str) -> None:
    """Logits to the dtype's rounding; the layers are the library's again afterwards, bit for bit."""
    model = load_model(packed(kind, scope="norms", dtype=dtype))
    before, names = logits(model), list(packed_layers(model))
    tolerance = 1e-5 if dtype == "float32" else 0.05
    torch.testing.assert_close(logits(add_scales(model)), before, rtol=tolerance, atol=tolerance)
    assert sum(name.endswith(".quant_scale") for name, _ in model.named_parameters()) == len(names)
    assert {p.dtype for n, p in model.named_parameters() if n.endswith("quant_scale")} == {torch.float32}
    assert torch.equal(logits(settle_scales(model)), before) and list(packed_layers(model)) == names


@weight_only
def test_a_block_of_rows_at_a_time(packed: Packed, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Blocks of one, three and all rows give the same logits to rounding."""
    found = []
    for rows in (1, 3, 1000):
        monkeypatch.setattr("zotune.quantised.scales._BLOCK", rows * 64)
        found.append(logits(load_model(packed(kind, scope="scales"))))
    for each in found[1:]:
        torch.testing.assert_close(each, found[0], rtol=1e-5, atol=1e-5)


@weight_only
def test_scales_train_resume_and_replay(packed: Packed, disturbed: Callable[..., Any], kind: str) -> None:
    """QZO over an interrupted run: the same bytes, the same hash, only scales, and they changed."""
    options = {"scope": "scales", "method": "qzo", "eps": 1e-3, "lr": 1e-4, "eval_every": 3, "snapshot_every": 2}
    settings = packed(kind, **options)
    result = disturbed(settings)
    assert replay(result["run"], True, Quiet())["verified"]
    assert evaluate_run(settings, result["run"], Quiet())["loss"] == result["loss_after"] != result["loss_before"]


@weight_only
def test_both_signs_ride_in_one_forward(packed: Packed, said: Callable[..., str], kind: str) -> None:
    """Also with groups inside a row, where each lane has a weight of its own."""
    assert "2 forwards, one batch for both sides" in said(packed(kind, scope="scales", method="qzo", eps=1e-3))


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_perturbed_scale_is_a_perturbed_weight(packed: Packed, kind: str) -> None:
    """The losses at +eps z and -eps z equal those of a copy whose scales were written."""
    settings = packed(kind, scope="scales")
    batch = {"input_ids": IDS, "labels": IDS}
    optimizer = QZO(load_model(settings), eps=1e-3, scope="scales", seed=3)
    points = optimizer.estimator.points(3, 0)
    found = optimizer.evaluator.losses(models.loss, batch, points)
    for point, losses in zip(points, found, strict=True):
        copy = QZO(load_model(settings), eps=1e-3, scope="scales", seed=3)
        with torch.no_grad():
            for target in copy.perturber.targets():
                z = copy.direction.block(target, point.key, 0, target.data.numel()).view_as(target.data)
                target.data.add_(z, alpha=point.scale)
            written = models.loss(copy.model, batch).double()
        torch.testing.assert_close(losses, written, rtol=0, atol=2e-6)
    assert float((found[0] - found[1]).abs().min()) > 1e-4


@weight_only
def test_trained_scales_are_given_back_to_the_library(packed: Packed, tmp_path: Any, kind: str) -> None:
    """`export` writes a packed checkpoint that transformers alone loads: the logits of the trained run."""
    from transformers import AutoModelForCausalLM

    settings = packed(kind, scope="scales", method="qzo", eps=1e-3, lr=1e-3)
    run = train(settings, Quiet())["run"]
    assert export(run, tmp_path / "folder", Quiet())["form"] == "merge"
    trained, before = load_model(settings), logits(load_model(packed(kind, scope="norms")))
    replay_onto(RunPaths(run), trained, Quiet())
    with quiet():
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "folder", device_map="cpu").eval()
    settle(plain, None)  # the products in bfloat16 of some processors would be another model
    torch.testing.assert_close(logits(plain), logits(trained), rtol=1e-5, atol=1e-5)
    assert float((logits(plain) - before).abs().max()) > 1e-3


def test_a_model_without_packed_layers_is_refused(config: Packed) -> None:
    """There are no scales to train."""
    with pytest.raises(ConfigError, match="scope scales: the model has no packed linear layers. Remedy: --quantize"):
        load_model(config(scope="scales"))


def test_blocks_across_rows_are_refused(packed: Packed, config: Packed) -> None:
    """nf4 shares a scale among 64 inputs; of rows of 16 it would serve several."""
    with pytest.raises(ConfigError, match="the scales of model.layers.0.self_attn.q_proj .* Remedy: --quantize int8"):
        load_model(packed("nf4", model=config().model, scope="scales"))
