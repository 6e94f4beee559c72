"""The mirror: banks and probes of a run, rebuilt from its header and records where the base is not."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from tests import models
from torch import Tensor, nn

from zotune.direction import Target
from zotune.engines.mirror import Mirror, columns
from zotune.errors import JournalError, RunError
from zotune.methods import METHODS
from zotune.noise import Key
from zotune.optimizer import ZerothOrder
from zotune.quantised.bank import Bank, add_bank, banks
from zotune.rebuild import current_sha256
from zotune.records import HashRecord, Record, encode

one_thread = models.one_thread
BATCH = {"input_ids": torch.tensor([[1, 7, 9, 11], [1, 5, 6, 7]])}
CPU = torch.device("cpu")
# What keeps its basis for a window, learns from every step, has a basis for every query, and a basis on the left.
METHODS_AND_ARGUMENTS: dict[str, dict[str, Any]] = {
    "lozo": {"rank": 2, "interval": 3, "queries": 2},
    "lozo_m": {"rank": 2, "interval": 2},
    "subzero": {"rank": 2, "interval": 3, "adam": True},
    "eggroll": {"population": 4, "rank": 2},
    "zo_muon": {"rank": 4, "interval": 3, "queries": 2},
}


def built(method: str, most: int = 64, dtype: torch.dtype = torch.float32, **arguments: Any) -> ZerothOrder:
    model = add_bank(models.tiny("llama").to(dtype), most)
    arguments = {**METHODS_AND_ARGUMENTS[method], **arguments}
    optimizer = METHODS[method].build(model, lr=1e-2, eps=1e-2, seed=5, scope="bank", **arguments)
    optimizer.fold_in_windows()
    return optimizer


def mirror_of(optimizer: ZerothOrder, most: int = 64, **other: Any) -> Mirror:
    return Mirror(json.loads(json.dumps(optimizer.header() | other)), most, CPU)


def trained(optimizer: ZerothOrder, steps: int) -> list[Record]:
    records: list[Record] = []
    optimizer.record = records.append
    for _ in range(steps):
        optimizer.step(models.loss, BATCH | {"labels": BATCH["input_ids"]})
    return records


def value(optimizer: ZerothOrder, target: Target) -> Tensor:
    """What was learned of a layer's weight, in float64."""
    bank = optimizer.perturber.bank(target.name)
    assert isinstance(bank, Bank)
    found = bank.u.double() @ bank.v.double().t()
    if target.pending is not None:
        found += target.pending.scale * target.pending.u.double() @ target.pending.v.double().t()
    return found


@pytest.mark.parametrize("method", METHODS_AND_ARGUMENTS)
def test_adapters_are_what_was_learned_and_the_probe(method: str) -> None:
    """After 5 steps, within a window: u v' is the run's bank, what is pending, and eps z as the stream draws it."""
    optimizer = built(method)
    mirror = mirror_of(optimizer)
    most = columns(optimizer, 64, 6)
    mirror.follow(b"".join(map(encode, trained(optimizer, 5))))
    assert mirror.step == optimizer.steps == 5
    for query, scale in ((0, 1e-2), (0, -1e-2), (0, 0.0)):
        found = mirror.adapters(query, scale)
        for target in optimizer.perturber.targets():
            u, v = found[target.name.removesuffix(".bank_delta")]
            assert u.shape[1] == v.shape[1] <= most and u.dtype == v.dtype == torch.float32
            z = optimizer.direction.block(target, Key(5, 5, query), 0, target.data.numel()).view(target.data.shape)
            expected = value(optimizer, target) + scale * z.double()
            torch.testing.assert_close(u.double() @ v.double().t(), expected, rtol=1e-5, atol=1e-8)


def test_hashes_are_those_of_the_run() -> None:
    """A recorded hash folds, as it did in the run, and is compared: the same bits, else nothing is served."""
    optimizer = built("lozo")
    mirror, wrong = mirror_of(optimizer), mirror_of(optimizer, seed=6)
    records = [*trained(optimizer, 4), HashRecord(4, current_sha256(optimizer))]
    mirror.follow(b"".join(map(encode, records)))
    mirror.follow(b"".join(map(encode, trained(optimizer, 3))))  # on a fold within a window
    for name, (u, _) in mirror.adapters(0, 0.0).items():
        target = next(t for t in optimizer.perturber.targets() if t.name == f"{name}.bank_delta")
        assert target.pending is not None
        assert torch.equal(u[:, -2:], target.pending.u) and torch.equal(u[:, :-2], banks(optimizer.model)[name].u)
    with pytest.raises(RunError, match="served after 4 steps is not what was trained.*Remedy"):
        wrong.follow(b"".join(map(encode, records)))


def test_a_full_bank_is_brought_back_in_both() -> None:
    """Of 3 columns at most: the best approximation in the run is that of the mirror, to rounding of LAPACK."""
    optimizer = built("lozo", most=3)
    mirror = mirror_of(optimizer, 3)
    most = columns(optimizer, 3, 12)
    records = [*trained(optimizer, 10)]
    mirror.follow(b"".join(map(encode, [*records, HashRecord(10, "0" * 64)])))  # no longer compared
    optimizer.fold()
    for target in optimizer.perturber.targets():
        u, v = mirror.adapters(0, 0.0)[target.name.removesuffix(".bank_delta")]
        assert u.shape[1] == 3 and most == 3 + 2 + 2
        torch.testing.assert_close(u.double() @ v.double().t(), value(optimizer, target), rtol=1e-5, atol=1e-7)


def test_a_step_that_was_left_out_is_left_out() -> None:
    """It has a number, and halves eps where the run does; what follows stays in step."""
    model = add_bank(models.tiny("llama"), 8)
    optimizer = METHODS["lozo"].build(model, lr=1e-2, eps=1e-2, seed=5, scope="bank", halve_eps=True)
    mirror = mirror_of(optimizer, 8)
    before = optimizer.header()
    records = trained(optimizer, 1)
    records.append(copy.copy(records[0]).__class__(1, records[0].lrs, (float("nan"),)))  # type: ignore[union-attr]
    optimizer.leave_out()
    records += trained(optimizer, 1)
    mirror.follow(b"".join(map(encode, records)))
    assert mirror.step == 3 and before["halve_eps"]
    for target in optimizer.perturber.targets():
        u, v = mirror.adapters(0, 0.0)[target.name.removesuffix(".bank_delta")]
        torch.testing.assert_close(u.double() @ v.double().t(), value(optimizer, target), rtol=1e-6, atol=1e-9)


def test_a_probe_in_16_bits_keeps_its_bits_beside_what_was_learned() -> None:
    """Its columns are its own: rounded to bfloat16, the two sides are still each other's opposites."""
    optimizer = built("lozo", dtype=torch.bfloat16)
    mirror = mirror_of(optimizer)
    mirror.follow(b"".join(map(encode, trained(optimizer, 4))))
    plus, minus = mirror.adapters(0, 1e-3), mirror.adapters(0, -1e-3)
    for name, (u, _) in plus.items():
        a, b = u.to(torch.bfloat16), minus[name][0].to(torch.bfloat16)
        assert torch.equal(a[:, :-2], b[:, :-2]) and torch.equal(a[:, -2:], -b[:, -2:]) and bool(a[:, -2:].any())


def test_no_weights_are_held() -> None:
    """Layers of 2**40 elements are names and sizes: their parameters are one number each."""
    header = built("lozo").header()
    big = {"name": "blocks.0.wide.bank_delta", "shape": [1 << 20, 1 << 20], "dtype": "float32"}
    header = header | {"parameters": [big], "groups": [{"names": [big["name"]], "weight_decay": 0.0}]}
    mirror = Mirror(header, 8, CPU)
    assert mirror.sizes == {"blocks.0.wide": (1 << 20, 1 << 20)}
    assert mirror.adapters(0, 0.0)["blocks.0.wide"][0].shape == (1 << 20, 0)


def test_another_stream_is_refused() -> None:
    """A worker with another version of the random stream would serve other probes."""
    optimizer = built("lozo")
    with pytest.raises(JournalError, match="noise stream"):
        mirror_of(optimizer, stream={"name": "philox", "version": 99})
    assert isinstance(optimizer.model, nn.Module)
