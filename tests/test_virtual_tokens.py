"""Prefix and prompt tuning: at first the model that reads real tokens before the text, and the same on any machine."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models import FAMILIES, MORE_FAMILIES, batch_for, displaced, loss, one_thread
from tests.models import tiny as small
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM

import zotune.virtual_tokens
from zotune.config import TrainConfig
from zotune.errors import ConfigError, RunError
from zotune.estimate import Point
from zotune.export import export
from zotune.history.branch import branch
from zotune.history.undo import undo
from zotune.load import load_model
from zotune.methods.mezo import MeZO
from zotune.noise import Key
from zotune.objective.model_kind import virtual_tokens
from zotune.plan import plan
from zotune.resolve import config_of
from zotune.revisit import replay, replay_onto
from zotune.run import RunPaths
from zotune.train import resume, train
from zotune.virtual_tokens import activations, add_prefix, add_prompt, peft_quiet, random_tokens, read_start
from zotune.watch import Quiet

PeftModel = pytest.importorskip("peft").PeftModel
one_thread = one_thread
Config = Callable[..., TrainConfig]
TEXT = [family for family in (*FAMILIES, *MORE_FAMILIES) if family != "cnn"]
MASKED = ("bert", "roberta")
# DeBERTa keeps no keys and values, an encoder-decoder model's prefix is shared by pairs of layers.
WITH_PREFIX = [family for family in TEXT if family not in ("deberta", "t5")]
ADD: dict[str, Callable[..., nn.Module]] = {"prefix": add_prefix, "prompt": add_prompt}
ROWS = [(family, kind) for family in TEXT for kind in ADD if kind == "prompt" or family in WITH_PREFIX]


def _inputs(family: str, ids: Tensor | None = None) -> dict[str, Tensor]:
    """Two texts, of masked models the second one padded; with `ids`, those tokens stand before each."""
    drawn = torch.randint(3, 36, (2, 6), generator=torch.Generator().manual_seed(1))
    if family in MASKED:
        seen = torch.ones(2, 6 + (0 if ids is None else len(ids)), dtype=torch.int64)
        seen[1, -2:] = 0
        return {"input_ids": drawn if ids is None else torch.cat([ids.expand(2, -1), drawn], 1), "attention_mask": seen}
    inputs = {"input_ids": drawn if ids is None else torch.cat([ids.expand(2, -1), drawn], 1)}
    return inputs | ({"decoder_input_ids": drawn[:, :3]} if family == "t5" else {})


@pytest.mark.parametrize(("family", "kind"), ROWS)
def test_they_begin_as_real_tokens(family: str, kind: str) -> None:
    """The logits are those of the bare model on a text that begins with the tokens drawn. In a masked model those of a
    prefix do not read the text.
    """
    ids = random_tokens(small(family), 3, 9)
    longer = _inputs(family, ids)
    if kind == "prefix" and family in MASKED:
        longer["attention_mask"] = longer["attention_mask"][:, None, None].bool().repeat(1, 1, 9, 1)
        longer["attention_mask"][:, :, :3, 3:] = False
    with torch.no_grad():
        expected = small(family)(**longer).logits
        adapted = ADD[kind](small(family), 3, 9)
        found = adapted(**_inputs(family)).logits
        bare = small(family)(**_inputs(family)).logits
    length = bare.shape[1]
    torch.testing.assert_close(found[:, -length:], expected[:, -length:], rtol=1e-4, atol=2e-5)
    assert (found[:, -length:] - bare).abs().max() > 1e-2
    assert virtual_tokens(adapted) == 3 and virtual_tokens(small(family)) == 0
    assert [name for name, p in adapted.named_parameters() if p.requires_grad] == [
        "prompt_encoder.default.embedding.weight"
    ]


@pytest.mark.parametrize(
    ("family", "kind"), [row for row in ROWS if row[0] in ("llama", "gpt2", "bert", "roberta", "t5")]
)
def test_lanes_are_the_displaced_model(family: str, kind: str) -> None:
    """Both signs in one forward, where every family's values move: equal to copies whose weights were written."""
    optimizer = MeZO(ADD[kind](small(family), 3, 2), lr=1e-2, eps=0.3, lanes="on", scope=kind)
    batch = batch_for(family)
    objective = _last_loss
    points = [Point(Key(0, 0, 0), sign * 0.3) for sign in (1, -1)]
    found = optimizer.evaluator.losses(objective, batch, points)
    assert optimizer.evaluator.mode == "lanes" and optimizer.evaluator.reason == ""
    with torch.no_grad():
        expected = torch.stack([objective(displaced(optimizer, point), batch) for point in points])
    torch.testing.assert_close(found.float(), expected, rtol=1e-4, atol=1e-5)
    assert (found[0] - found[1]).abs().min() > 1e-4


def _last_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """`loss`, but of the logits of the text: an adapted model may give some of its virtual tokens too."""

    class Text(nn.Module):
        def forward(self, **inputs: Any) -> Any:
            labels = inputs.pop("labels")
            if getattr(model.config, "is_encoder_decoder", False):
                inputs["decoder_input_ids"] = labels
            out = model(**inputs)
            out.logits = out.logits[:, -labels.shape[1] :]
            return out

    return loss(Text(), batch)


@pytest.mark.parametrize("scope", ["prefix", "prompt", "prefix & regex:encoder"])
def test_the_seed_alone_decides(config: Config, scope: str) -> None:
    """Whatever the global generator is at, they begin the same; the generator is left as it was."""
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = _values(load_model(config(scope=scope)))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(one, _values(load_model(config(scope=scope))))
    assert not torch.equal(one, _values(load_model(config(scope=scope, seed=5))))
    assert len(one) == 5 and len(_values(load_model(config(scope=scope, prefix_tokens=2)))) == 2


def _values(model: nn.Module) -> Tensor:
    (found,) = (p.detach() for p in model.parameters() if p.requires_grad)
    return found


@pytest.mark.parametrize(
    ("family", "scope", "said"),
    [
        ("t5", "prefix", "prefix cannot be added: PEFT's prefix .* shared by pairs of layers. Remedy"),
        ("llama", "prefix&lora", "names prefix and lora. Remedy: train one of them at a time"),
    ],
)
def test_where_they_cannot_be(config: Config, family: str, scope: str, said: str) -> None:
    """One sentence with the scope to take instead."""
    with pytest.raises(ConfigError, match=said):
        load_model(config(family, scope=scope))


def test_a_model_without_a_cache_or_a_table() -> None:
    """Modules that give no keys and values, or have no table of embeddings, are told so; also where only planned."""
    for place in ("cpu", "meta"):
        with pytest.raises(
            ConfigError, match="DebertaV2ForMaskedLM gives no keys and values .it fills no cache.*Remedy"
        ):
            add_prefix(small("deberta").to(place))
    with pytest.raises(ConfigError, match="Linear gives no keys and values .*Remedy"):
        activations(nn.Linear(2, 2), torch.tensor([1]))
    with pytest.raises(ConfigError, match="needs a model with a table of input embeddings. Remedy"):
        add_prompt(nn.Linear(2, 2))


# --- a prefix begins as the output of a forward pass, which another machine may round otherwise ----------------------


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call on, forward passes give other last bits."""
    inner = zotune.virtual_tokens.activations

    def move() -> None:
        monkeypatch.setattr(zotune.virtual_tokens, "activations", lambda *args: inner(*args) * (1 + 1e-6))

    return move


def test_runs_can_be_moved(config: Config, tmp_path: Path, elsewhere: Callable[[], None]) -> None:
    """Replay, resume, a branch and what was undone begin with the values that the run wrote down."""
    trained = train(config(scope="prefix", snapshot_every=3), Quiet())
    run = tmp_path / "run"
    elsewhere()
    assert replay(run, True, Quiet())["weights_sha256"] == trained["weights_sha256"]
    branch(run, 4, tmp_path / "longer", {"steps": 9})
    assert resume(tmp_path / "longer", Quiet())["steps"] == 9
    undo(run, 3)
    assert replay(run / "undone" / "1", True, Quiet())["weights_sha256"] == trained["weights_sha256"]
    assert resume(run, Quiet())["weights_sha256"] == trained["weights_sha256"]
    shutil.copytree(run, tmp_path / "lost")
    (tmp_path / "lost" / "start.safetensors").unlink()
    with pytest.raises(RunError, match="not those the run began from"):
        replay(tmp_path / "lost", True, Quiet())


def test_the_file_is_checked(config: Config, tmp_path: Path) -> None:
    """Another file in its place, other shapes and a link are refused; a new run in the folder begins anew."""
    train(config(scope="prefix", steps=1), Quiet())
    path = RunPaths(tmp_path / "run").start
    good = path.read_bytes()
    assert read_start(tmp_path / "none") is None
    path.write_bytes(good[:-9])
    with pytest.raises(RunError, match="does not hold the values of a prefix. Remedy"):
        replay(tmp_path / "run", True, Quiet())
    path.write_bytes(good)
    with pytest.raises(ConfigError, match=r"values of shape \(5, 48\) for them, PEFT \(3, 48\)"):
        load_model(replace(config_of(RunPaths(tmp_path / "run")), prefix_tokens=3))
    path.rename(tmp_path / "aside")
    path.symlink_to(tmp_path / "aside")
    with pytest.raises(RunError, match="is not a plain file"):
        replay(tmp_path / "run", True, Quiet())
    path.unlink()
    path.write_bytes(b"left by a run that was stopped before its first step")
    (tmp_path / "run" / "journal.zoj").unlink()
    (tmp_path / "run" / "metrics.jsonl").unlink()
    train(config(scope="prefix", steps=1), Quiet())
    assert path.read_bytes() == good


def test_a_masked_run(config: Config, tmp_path: Path) -> None:
    """A prefix of a masked model is planned, trained and replayed to the same hash, and PEFT loads it: same logits."""
    settings = config("bert", scope="prefix", lr=1e-1, eps=1e-1)
    assert plan(settings, Quiet())["trained"] == 5 * 3 * 2 * 16
    trained = train(settings, Quiet())
    assert trained["loss_after"] != trained["loss_before"]
    assert replay(tmp_path / "run", True, Quiet())["weights_sha256"] == trained["weights_sha256"]
    assert export(tmp_path / "run", tmp_path / "adapter", Quiet())["form"] == "adapter"
    live = load_model(settings)
    replay_onto(RunPaths(tmp_path / "run"), live, Quiet())
    base = AutoModelForMaskedLM.from_pretrained(settings.model, dtype=torch.float32)
    with peft_quiet():
        loaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    inputs = {"input_ids": torch.tensor([[2, 6, 7, 4, 3], [2, 9, 4, 3, 0]])}
    inputs["attention_mask"] = (inputs["input_ids"] != 0).long()
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, live(**inputs).logits)


@pytest.mark.parametrize("kind", ADD)
def test_more_than_there_are_positions_for(kind: str) -> None:
    """Virtual tokens take positions from a table of them: one must be left."""
    with pytest.raises(
        ConfigError, match="32 virtual tokens leave no room .* 32 positions. Remedy: lower --prefix-tok"
    ):
        ADD[kind](small("gpt2"), 32)
    assert virtual_tokens(ADD[kind](small("gpt2"), 31)) == 31
    assert virtual_tokens(ADD[kind](small("llama"), 32)) == 32
