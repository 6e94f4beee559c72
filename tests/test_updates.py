"""What a step's probes do to the parameters: written now, summed until a fold, kept in a bank."""

from __future__ import annotations

import pytest
import torch
from tests import models
from tests.gpu import GPU, Copies
from tests.models import Weights, normals, same_bits, train, weights
from torch import Tensor

from zotune import updates as module
from zotune.errors import UserError
from zotune.estimate import Probe
from zotune.noise import Key
from zotune.optimizer import ZerothOrder
from zotune.updates import Updates

one_thread = models.one_thread
SEED, LR = 5, 0.1


def made(method: str, dtype: torch.dtype = torch.float64) -> tuple[ZerothOrder, Updates]:
    """Of a matrix (9, 7) and a vector of 7."""
    optimizer = train(method, Weights(a=normals((9, 7), 1, dtype), b=normals(7, 2, dtype)), lr=LR)
    return optimizer, Updates(optimizer.perturber, optimizer.direction, optimizer.rule, None, method)


def moved(optimizer: ZerothOrder, updates: Updates, step: int, wait: bool, rates: tuple[float, float]) -> None:
    """One step along its own direction, with a slope of 2."""
    updates.apply(Key(SEED, step), [Probe(Key(SEED, step), 2.0, (1.0, 1.0))], [rates] * 2, wait)


def test_a_target_moves_along_its_direction() -> None:
    """w <- w - lr * g * z, decayed by lr * weight_decay, for MeZO in float64 to 1e-14."""
    optimizer, updates = made("mezo")
    before = {name: tensor.clone() for name, tensor in weights(optimizer.model).items()}
    moved(optimizer, updates, 0, False, (LR, 0.5))
    for target in optimizer.perturber.targets():
        z = optimizer.direction.block(target, Key(SEED, 0), 0, target.data.numel()).double()
        expected = before[target.name] * (1 - LR * 0.5) - LR * 2.0 * z.view(target.data.shape)
        torch.testing.assert_close(target.data, expected, rtol=0, atol=1e-14)


def test_low_rank_changes_wait_for_the_fold() -> None:
    """Two steps of a window: the matrix is written by the fold alone, to what both steps would have written."""
    now, later = made("lozo"), made("lozo")
    before = now[0].model.a.clone()
    for step in range(2):
        moved(*now, step, False, (LR, 0.0))
        moved(*later, step, True, (LR, 0.0))
    assert torch.equal(later[0].model.a, before) and list(later[0].perturber.pending) == ["a"]
    with later[1].settled(Key(SEED, 2)), torch.no_grad():
        seen = later[0].model.a * 1.0
    torch.testing.assert_close(seen, now[0].model.a, rtol=0, atol=1e-13)
    later[1].fold(Key(SEED, 1))
    assert not later[0].perturber.pending
    torch.testing.assert_close(later[0].model.a, now[0].model.a, rtol=0, atol=1e-13)


def test_a_fold_without_changes_writes_nothing() -> None:
    """Not even the sign of a zero."""
    optimizer, updates = made("lozo")
    with torch.no_grad():
        optimizer.model.a.fill_(-0.0)
    moved(optimizer, updates, 0, True, (0.0, 0.0))
    updates.fold(Key(SEED, 0))
    assert bool(torch.signbit(optimizer.model.a).all()) and not optimizer.perturber.pending


@pytest.mark.parametrize("method", ["lozo", "mezo"])
@pytest.mark.parametrize("wait", [False, True])
def test_a_gpu_is_asked_once_at_most(method: str, wait: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many tensors an update has: each answer that the host waited for would stop the device."""
    asked: list[int] = []
    monkeypatch.setattr(module, "_not_zero", lambda us: [bool(asked.append(len(us))) or True for _ in us[:1]] * len(us))
    optimizer = train(method, models.tiny("llama", torch.bfloat16).to(GPU), lr=LR)
    with Copies() as copies:  # nothing can be read there: another question would be an error
        updates = Updates(optimizer.perturber, optimizer.direction, optimizer.rule, None, method)
        rates = [(LR, 0.0)] * len(optimizer.perturber.targets())
        updates.apply(Key(SEED, 0), [Probe(Key(SEED, 0), 2.0, (1.0, 1.0))], rates, wait)
        copies.found.clear()  # what is the same in every step is copied in the first
        updates.apply(Key(SEED, 1), [Probe(Key(SEED, 1), 2.0, (1.0, 1.0))], rates, wait)
        updates.fold(Key(SEED, 1))
    assert copies.found == []
    assert len(asked) == ((1 if wait else 2) if method == "lozo" else 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_was_named_can_be_put_back(dtype: torch.dtype) -> None:
    """Bit for bit."""
    optimizer, updates = made("mezo", dtype)
    kept: dict[str, Tensor] = {name: tensor.clone() for name, tensor in updates.named().items()}
    assert list(kept) == ["a", "b"]
    moved(optimizer, updates, 0, False, (LR, 0.0))
    assert not same_bits(weights(optimizer.model), kept)
    updates.put(kept)
    assert same_bits(weights(optimizer.model), kept)


def test_a_bank_takes_no_dense_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method without factors is refused by name, and nothing is written."""
    optimizer, updates = made("mezo")
    monkeypatch.setattr(type(optimizer.perturber), "bank", lambda perturber, name: object())
    before = {name: tensor.clone() for name, tensor in weights(optimizer.model).items()}
    with pytest.raises(UserError, match="mezo"):
        moved(optimizer, updates, 0, False, (LR, 0.0))
    assert same_bits(weights(optimizer.model), before)
