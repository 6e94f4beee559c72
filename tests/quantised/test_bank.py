"""The adapter bank: updates beside a read-only base, exact until its rank is full, and loadable by PEFT."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests import models
from torch import Tensor, nn

from zotune.config import TrainConfig
from zotune.direction import Factors
from zotune.errors import ConfigError
from zotune.export import export
from zotune.load import load_model
from zotune.methods import METHODS, LoZO, MeZO
from zotune.quantised.bank import Bank, add_bank, banks
from zotune.quantised.layers import packed_layers
from zotune.revisit import evaluate_run, replay, replay_onto
from zotune.run import RunPaths
from zotune.train import train
from zotune.virtual_tokens import peft_quiet
from zotune.watch import Quiet
from zotune.weights import base_sha256, weights_sha256

one_thread = models.one_thread
Packed = Callable[..., TrainConfig]
IDS = torch.tensor([[1, 7, 9, 11], [1, 5, 6, 7]])
BATCH = {"input_ids": IDS, "labels": IDS}
OPTIONS: dict[str, Any] = {"scope": "bank", "method": "lozo", "lr": 1e-3, "method_args": {"interval": 2}}


def logits(model: Any) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model(IDS).logits
    return found


def dense(bank: Bank) -> Tensor:
    return bank.u @ bank.v.t()


@pytest.mark.parametrize("kind", ["int8", "int4", "nf4", "llm_int8"])
def test_a_bank_trains_resumes_and_replays(packed: Packed, disturbed: Callable[..., Any], kind: str) -> None:
    """LoZO over packed layers, stopped inside windows: the same bytes and hash; the base keeps every bit."""
    settings = packed(kind, **OPTIONS, eval_every=3, snapshot_every=2)
    result = disturbed(settings)
    assert replay(result["run"], True, Quiet())["verified"]
    # The run's last evaluation added the open window's update where a replay has folded it: rounded otherwise.
    near = pytest.approx(result["loss_after"], rel=1e-2 if kind == "llm_int8" else 1e-5)
    assert evaluate_run(settings, result["run"], Quiet())["loss"] == near and result["loss_before"] != near


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_both_signs_ride_in_one_forward(packed: Packed, said: Callable[..., str], kind: str) -> None:
    """The base's product is one for all lanes, the probes are thin terms beside it."""
    assert "2 forwards, one batch for both sides" in said(packed(kind, **OPTIONS))


def test_the_bank_is_the_sum_of_all_updates(packed: Packed) -> None:
    """u v' equals -sum lr coef z over 7 steps of 4 windows to 1e-6, z as the stream draws it; the base stays."""
    model = load_model(packed("int8", scope="bank"))
    inner = {name: layer.weight.qdata.clone() for name, layer in packed_layers(model).items()}  # type: ignore[union-attr]
    optimizer = LoZO(model, lr=1e-2, eps=1e-2, rank=2, interval=2, scope="bank", fold_every=2)
    expected = {target.name: torch.zeros(target.data.shape) for target in optimizer.perturber.targets()}
    for _ in range(7):
        optimizer.step(models.loss, BATCH)
        for target in optimizer.perturber.targets():
            for probe in optimizer.probes:
                z = optimizer.direction.block(target, probe.key, 0, target.data.numel())
                expected[target.name] -= 1e-2 * probe.coef * z.view(target.data.shape)
    with optimizer.settled():
        settled = logits(model)
    optimizer.fold()
    torch.testing.assert_close(logits(model), settled, rtol=1e-4, atol=1e-4)
    for name, bank in banks(model).items():
        assert bank.u.shape[1] == bank.v.shape[1] == 8 and float(bank.lost) == 0
        torch.testing.assert_close(dense(bank), expected[f"{name}.bank_delta"], rtol=1e-5, atol=1e-6)
    assert all(torch.equal(layer.weight.qdata, inner[name]) for name, layer in packed_layers(model).items())  # type: ignore[union-attr]


def test_lanes_equal_single_evaluations_equal_a_written_weight(packed: Packed) -> None:
    """The losses at +eps z and -eps z, with updates folded and pending, are those of a layer with that weight added."""
    model = load_model(packed("int8", scope="bank"))
    optimizer = LoZO(model, lr=1e-2, eps=1e-2, rank=2, interval=3, scope="bank", fold_every=3)
    for _ in range(4):
        optimizer.step(models.loss, BATCH)
    assert optimizer.perturber.pending and all(bank.u.shape[1] == 2 for bank in banks(model).values())
    points = optimizer.estimator.points(0, 4)
    together = optimizer.evaluator.losses(models.loss, BATCH, points)
    assert optimizer.evaluator.mode == "lanes"
    optimizer.evaluator.mode = "sequential"
    alone = optimizer.evaluator.losses(models.loss, BATCH, points)
    for point, in_lane, single in zip(points, together, alone, strict=True):
        copy = load_model(packed("int8", scope="bank"))
        for target in optimizer.perturber.targets():
            layer = target.name.removesuffix(".bank_delta")
            bank = banks(copy)[layer]
            bank.append(Factors(banks(model)[layer].u, banks(model)[layer].v, 1.0))
            assert target.pending is not None
            bank.append(target.pending)
            z = optimizer.direction.factors(target, point.key)
            assert z is not None
            bank.append(Factors(z.u, z.v, z.scale * point.scale))
        with torch.inference_mode():
            written = models.loss(copy, BATCH).double()
        torch.testing.assert_close(single, written, rtol=0, atol=5e-6)
        torch.testing.assert_close(in_lane, written, rtol=0, atol=5e-6)
    assert float((together[0] - together[1]).abs().min()) > 1e-3


def test_a_full_bank_keeps_the_best_rank_and_says_what_it_lost() -> None:
    """Twenty updates of rank 2 in a bank of rank 8: no further from their sum than `lost`, and that is not idle."""
    base = nn.Linear(40, 30)
    bank, total = Bank(base, torch.float32, 8), torch.zeros(30, 40)
    for seed in range(20):
        u, v = models.normals((30, 2), seed), models.normals((40, 2), seed + 50)
        bank.append(Factors(u, v, 0.5))
        total += 0.5 * u @ v.t()
        off = float((dense(bank) - total).norm())
        assert bank.u.shape[1] == min(8, 2 * (seed + 1)) and off <= float(bank.lost) + 1e-4
        if seed == 4:  # one truncation: it is the best approximation of its rank
            best = torch.linalg.svdvals(total.double())[8:].norm()
            assert off == pytest.approx(float(best), rel=1e-4) and float(bank.lost) == pytest.approx(float(best))
    assert 0.1 * float(bank.lost) < off


def test_a_rank_above_the_layer_is_that_of_the_layer() -> None:
    """A bank of rank 64 beside a layer of 6 by 5 keeps 5 columns and loses nothing."""
    bank, total = Bank(nn.Linear(6, 5), torch.float32, 64), torch.zeros(5, 6)
    for seed in range(40):
        u, v = models.normals((5, 2), seed), models.normals((6, 2), seed + 50)
        bank.append(Factors(u, v, 1.0))
        total += u @ v.t()
    assert float(bank.lost) < 1e-9
    torch.testing.assert_close(dense(bank), total, rtol=1e-4, atol=1e-4)


def test_a_second_fold_in_a_window_shares_its_columns() -> None:
    """Updates with one v are summed, so that looking at a run does not use up the bank."""
    bank, v = Bank(nn.Linear(6, 5), torch.float32, 4), models.normals((6, 2), 9)
    first, second = models.normals((5, 2), 1), models.normals((5, 2), 2)
    for u in (first, second):
        bank.append(Factors(u, v, 1.0))
    assert bank.u.shape == (5, 2) and torch.equal(bank.u, first + second)


def test_a_bank_of_a_plain_model(config: Packed) -> None:
    """Without packed layers every linear layer but the head has one; a parameter without memory costs none."""
    settings = config(**OPTIONS)
    model = load_model(settings)
    assert len(banks(model)) == 21 and not isinstance(model.lm_head, Bank)
    deltas = [p for name, p in model.named_parameters() if name.endswith("bank_delta")]
    assert {p.untyped_storage().nbytes() for p in deltas} == {4} and max(p.numel() for p in deltas) == 384
    assert train(settings, Quiet())["steps"] == 7 and replay(settings.output_dir, True, Quiet())["verified"]


def test_one_number_seen_often_is_hashed_as_one() -> None:
    """Its shape counts, and its value; a matrix of equal numbers is another tensor."""
    seen = torch.zeros(()).expand(3, 4)
    found = [{"a": seen}, {"a": seen + 0.0}, {"a": torch.zeros(()).expand(4, 3)}, {"a": torch.ones(()).expand(3, 4)}]
    assert len({weights_sha256(each) for each in found}) == 4
    assert weights_sha256({"a": torch.zeros(1, 1)}) == weights_sha256({"a": torch.zeros(1).expand(1, 1)})


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_peft_loads_the_bank(packed: Packed, tmp_path: Any, kind: str) -> None:
    """`export` writes an adapter; on the same packed base PEFT computes the logits of the trained run."""
    from peft import PeftModel

    settings = packed(kind, **OPTIONS)
    run = train(settings, Quiet())["run"]
    assert export(run, tmp_path / "adapter", Quiet())["form"] == "adapter"
    trained = load_model(settings)
    replay_onto(RunPaths(run), trained, Quiet())
    base: Any = load_model(packed(kind, scope="norms"))
    before = logits(base)
    with peft_quiet(0):
        loaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(loaded), logits(trained), rtol=1e-4, atol=1e-5)
    assert float((logits(loaded) - before).abs().max()) > 1e-3
    with pytest.raises(ConfigError, match="numbers beside packed weights"):
        export(run, tmp_path / "merged", Quiet(), form="merge")


def test_a_changed_base_is_seen_under_the_bank(packed: Packed) -> None:
    """The hash of the base covers the packed layers inside banks."""
    model = load_model(packed("int8", scope="bank"))
    before = base_sha256(model)
    layer: Any = list(packed_layers(model).values())[-1]
    layer.weight.qdata[0, 0] ^= 1
    assert base_sha256(model) != before


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_bank_or_says_why_not(config: Packed, method: str) -> None:
    """Low-rank methods take three steps; the others are refused before the first, with a remedy."""
    model = load_model(config(scope="bank"))
    before = {name: dense(bank) for name, bank in banks(model).items()}
    try:
        optimizer = models.train(method, model, scope="bank")
    except ConfigError as refused:
        assert f"{method} has no low-rank form for" in str(refused) and "Remedy: --method lozo" in str(refused)
        assert method not in ("lozo", "lozo_m", "subzero", "zo_muon", "eggroll")
        return
    for _ in range(3):
        optimizer.step(models.loss, BATCH)
    optimizer.fold()
    assert all(not torch.equal(dense(bank), before[name]) for name, bank in banks(model).items())


def test_what_cannot_be_banked_is_refused(config: Packed) -> None:
    """Weight decay of a read-only base, dense directions, a model without linear layers."""
    model = load_model(config(scope="bank"))
    with pytest.raises(ConfigError, match="a bank's base is read-only, so it cannot decay. Remedy: no weight decay"):
        LoZO(model, scope="bank", weight_decay=0.1)
    with pytest.raises(ConfigError, match="mezo has no low-rank form for .*bank_delta"):
        MeZO(model, scope="bank")
    with pytest.raises(ConfigError, match="scope bank: the model has no linear layers. Remedy"):
        add_bank(nn.Embedding(3, 2), 4)


def test_a_bank_at_rest_keeps_its_updates(config: Packed) -> None:
    """With blocks=cycle a layer that rests in a step still counts what was folded and what is pending."""
    model = load_model(config(scope="bank"))
    optimizer = LoZO(model, lr=1e-2, eps=1e-2, rank=2, interval=6, scope="bank", blocks="cycle", fold_every=6)
    for _ in range(4):
        optimizer.step(models.loss, BATCH)
    points = optimizer.estimator.points(0, 4)
    found = optimizer.evaluator.losses(models.loss, BATCH, points)
    optimizer.fold()
    torch.testing.assert_close(optimizer.evaluator.losses(models.loss, BATCH, points), found, rtol=0, atol=2e-6)
