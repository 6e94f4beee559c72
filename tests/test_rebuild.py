"""Replay: a journal and the base weights give the run's weights, bit for bit, without data or forwards."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from tests import models
from tests.models import KINDS, LONG_STEPS, ROWS, batch_for, loss, same_bits, seeded, tiny, train, weights
from torch import Tensor, nn

import zotune
from zotune.errors import JournalError, RunError, UserError
from zotune.journal import HashRecord, Journal, read
from zotune.methods import METHODS
from zotune.optimizer import ZerothOrder
from zotune.rebuild import apply, current_sha256, rebuild, scope_sha256, steps_of

one_thread = models.one_thread
replayable = pytest.mark.parametrize("method", [name for name, row in METHODS.items() if row.replayable])
bound_to_data = pytest.mark.parametrize("method", [name for name, row in METHODS.items() if not row.replayable])
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Long for the kinds of direction that there are; for the other methods a few steps, and the long run as a slow test.
RUNS = [
    pytest.param(name, steps, marks=pytest.mark.slow if steps == 200 and name not in KINDS else ())
    for name, row in METHODS.items()
    for steps in ((200,) if name in KINDS else (12, 200))
    if row.replayable
]


def adapted(dtype: torch.dtype) -> nn.Module:
    """A tiny Llama with LoRA adapters whose B is not zero, in `dtype` throughout."""
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    base = tiny("llama", dtype)
    with warnings.catch_warnings():
        # peft reads a property that transformers has deprecated.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        return seeded(lambda: peft.get_peft_model(base, config, autocast_adapter_dtype=False), 2).eval()


def base(kind: str, dtype: torch.dtype) -> nn.Module:
    return adapted(dtype) if kind == "lora" else tiny("llama", dtype)


def cheap(model: nn.Module, batch: Any) -> Tensor:
    """A loss of the parameters alone, so that 200 steps cost little: replay does not ask where losses come from.

    Every row of the batch has the same; without rows it is one number.
    """
    named = dict(model.named_parameters())
    adapters = {name: parameter for name, parameter in named.items() if "lora_" in name}
    loss = torch.stack([parameter.float().square().mean() for parameter in (adapters or named).values()]).sum()
    return loss.expand(len(batch["row"])) if batch else loss


def run(
    path: Path, model: nn.Module, method: str, objective: Any, batch: Any, steps: int, **options: Any
) -> ZerothOrder:
    """Train and write the journal, with the hash of the weights at the end."""
    optimizer = train(method, model, **options)
    header = optimizer.header() | {"scope_sha256": scope_sha256(model, optimizer.names)}
    with Journal.create(path, header) as journal:
        optimizer.record = journal.append
        for _ in range(steps):
            optimizer.step(objective, batch)
        journal.append(HashRecord(optimizer.steps, current_sha256(optimizer)))
    return optimizer


@pytest.mark.parametrize(("method", "steps"), RUNS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_replay_ends_with_the_same_bits(method: str, steps: int, dtype: torch.dtype, kind: str, tmp_path: Path) -> None:
    """With decay, on a tiny Llama, all of it or its adapters: replay of the journal equals the run exactly."""
    model, path = base(kind, dtype), tmp_path / "journal.zoj"
    before, queries = weights(model), 2 if kind == "lora" else 1
    options = {"lr": 5e-4 if method in LONG_STEPS else 0.05, "weight_decay": 0.01, "queries": queries}
    optimizer = run(path, model, method, cheap, ROWS, steps, seed=2**63 + 5, **options)
    if kind == "lora":
        assert all("lora_" in name for name in optimizer.names)
    changed = [name for name, value in weights(model).items() if not torch.equal(value, before[name])]
    assert set(changed) >= {name for name in optimizer.names if "norm" not in name}

    again = base(kind, dtype)
    calls: list[None] = []
    again.register_forward_hook(lambda *_: calls.append(None))
    found = zotune.replay(path, again)
    assert same_bits(weights(again), weights(model)) and not calls
    assert found["steps"] == steps and found["verified"] is True
    assert found["weights_sha256"] == found["recorded_sha256"] == current_sha256(optimizer)


def test_a_hash_in_the_wrong_place_is_refused(tmp_path: Path) -> None:
    """A journal that lost the step before its hash is not the run's."""
    path, model = tmp_path / "journal.zoj", base("full", torch.float32)
    run(path, model, "mezo", cheap, ROWS, 3)
    header, records, _ = read(path)
    optimizer = rebuild(header, base("full", torch.float32))
    with pytest.raises(JournalError, match="after 3 steps stands where 2 are recorded.*Remedy"):
        apply(optimizer, [*records[:2], records[3]])


@replayable
def test_a_run_with_real_forwards_replays(method: str, tmp_path: Path) -> None:
    """Losses of the model itself, in lanes, several param groups with their own lr and schedule."""
    path, model = tmp_path / "journal.zoj", tiny("gpt2", torch.bfloat16)

    def groups(model: nn.Module) -> list[dict[str, Any]]:
        every = list(model.parameters())
        return [{"params": every[:5], "lr": 3e-2}, {"params": every[5:], "weight_decay": 0.1}]

    optimizer = train(method, model, params=groups(model))
    with Journal.create(path, optimizer.header()) as journal:
        optimizer.record = journal.append
        for step in range(8):
            optimizer.param_groups[1]["lr"] = 1e-2 * (step + 1)
            optimizer.step(loss, batch_for("gpt2"))
    assert optimizer.evaluator.mode == "lanes"
    again = tiny("gpt2", torch.bfloat16)
    found = zotune.replay(path, again)
    assert same_bits(weights(again), weights(model))
    assert found["recorded_sha256"] is None and found["verified"] is False


@bound_to_data
def test_a_method_that_reads_the_data_is_not_replayed(method: str, tmp_path: Path) -> None:
    """The refusal says why and what works instead; no weight has moved."""
    path, model = tmp_path / "journal.zoj", tiny("llama")
    optimizer = run(path, model, method, loss, batch_for("llama"), 2)
    assert optimizer.direction.reads_inputs
    again = tiny("llama")
    before = weights(again)
    with pytest.raises(UserError, match=f"{method} draws its directions from the inputs of the layers.*Remedy: "):
        zotune.replay(path, again)
    assert same_bits(weights(again), before)


def test_a_prefix_can_be_replayed(tmp_path: Path) -> None:
    """The first steps alone give the weights that the run had then; a recorded hash in between is checked."""
    path, model = tmp_path / "journal.zoj", tiny("llama")
    optimizer = train("mezo", model)
    middle: dict[str, Tensor] = {}
    with Journal.create(path, optimizer.header()) as journal:
        optimizer.record = journal.append
        for step in range(6):
            if step == 3:
                middle = weights(model)
                journal.append(HashRecord(3, current_sha256(optimizer)))
            optimizer.step(cheap, {})
    for steps, expected in ((0, weights(tiny("llama"))), (3, middle), (6, weights(model)), (99, weights(model))):
        again = tiny("llama")
        found = zotune.replay(path, again, steps=steps)
        assert same_bits(weights(again), expected)
        assert found["steps"] == min(steps, 6) and found["verified"] == (steps == 3)
    assert [record.step for record in steps_of(read(path)[1])] == list(range(6))


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """Three steps of MeZO on a tiny Llama."""
    path = tmp_path / "journal.zoj"
    run(path, tiny("llama"), "mezo", cheap, {}, 3)
    return path


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (
            lambda: tiny("llama", seed=8),
            "not those the run began from: in scope their sha256 is [0-9a-f]{64}, the journal has [0-9a-f]{64}",
        ),
        (lambda: tiny("llama", torch.bfloat16), "is bfloat16 .* and float32"),
        (lambda: tiny("gpt2"), "no parameter 'model.embed_tokens.weight'"),
        (lambda: tiny("qwen3"), "is|no parameter"),
    ],
)
def test_a_wrong_base_model_is_refused(journal: Path, model: Any, words: str) -> None:
    """Other weights, dtype, names or shapes: an error with a remedy, and the model is left alone."""
    wrong = model()
    before = weights(wrong)
    with pytest.raises(RunError, match=words) as caught:
        zotune.replay(journal, wrong)
    assert "Remedy" in str(caught.value) and same_bits(weights(wrong), before)


def test_a_model_that_was_already_trained_is_refused(journal: Path) -> None:
    """Replaying twice onto the same model is caught by the fingerprint of the base."""
    model = tiny("llama")
    zotune.replay(journal, model)
    with pytest.raises(RunError, match="already trained"):
        zotune.replay(journal, model)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"method": "adam"}, "method 'adam', unknown here"),
        ({"method": "custom"}, "method 'custom', unknown here"),
        ({"stream": {"name": "philox4x32-10/zotune", "version": 2}}, "version.*2.*this version draws"),
        ({"stream": {"name": "mt19937", "version": 1}}, "mt19937"),
        ({"stream": {}}, "noise stream is"),
    ],
)
def test_another_method_or_stream_is_refused(journal: Path, change: dict[str, Any], words: str) -> None:
    """A header this version cannot follow: what it names, and what is here, are in the message."""
    header, records, _ = read(journal)
    other = journal.with_name("other.zoj")
    with Journal.create(other, header | change) as copy:
        for record in records:
            copy.append(record)
    model = tiny("llama")
    before = weights(model)
    with pytest.raises(JournalError, match=words):
        zotune.replay(other, model)
    assert same_bits(weights(model), before)


def test_weights_that_differ_from_the_recorded_hash_are_an_error(journal: Path) -> None:
    """A hash record that does not fit the replayed weights stops the replay and names the step."""
    header, records, _ = read(journal)
    other = journal.with_name("other.zoj")
    with Journal.create(other, header) as copy:
        for record in records[:2]:
            copy.append(record)
        copy.append(HashRecord(2, "ab" * 32))
    with pytest.raises(RunError, match="after 2 steps the weights hash to"):
        zotune.replay(other, tiny("llama"))
