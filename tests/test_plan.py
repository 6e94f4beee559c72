"""The plan: no weight is read, the journal is exact, memory is near what a run takes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests import models
from tests.machines import MACHINE

from zotune.config import TrainConfig
from zotune.errors import ConfigError
from zotune.load import load_model, meta_model
from zotune.meter import Meter
from zotune.objective.base import to_device
from zotune.plan import plan
from zotune.session import Session
from zotune.train import train
from zotune.watch import Quiet


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that was measured before."""
    monkeypatch.setattr("zotune.plan.calibrate", lambda *_: MACHINE)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5"])
def test_meta_model_is_the_model_without_weights(config: Callable[..., TrainConfig], family: str) -> None:
    """Names, shapes, dtypes and ties are those of the loaded model, and nothing is allocated."""
    found, loaded = meta_model(config(family)), load_model(config(family))
    described = [
        {name: (parameter.shape, parameter.dtype) for name, parameter in model.named_parameters()}
        for model in (found, loaded)
    ]
    assert described[0] == described[1]
    assert all(parameter.is_meta for parameter in found.parameters())


@pytest.mark.parametrize(
    ("family", "scope"), [("llama", "norms&last:1"), ("gpt2", "full"), ("bert", "full"), ("t5", "norms&last:1")]
)
def test_plan_agrees_with_the_run(config: Callable[..., TrainConfig], family: str, scope: str, tmp_path: Path) -> None:
    """Journal to the byte, forwards and reused blocks as the run has them, snapshots to a few per cent."""
    settings = config(family, scope=scope, steps=4, snapshot_every=2)
    expected = plan(settings, Quiet())
    result = train(settings, Quiet())
    session = Session(settings).begin()
    assert expected["disk"]["journal"] == result["journal_bytes"]
    assert expected["blocks_reused"] == session.reuse.depth
    assert expected["forwards_per_step"] == 2 and expected["trained"] == len(_scope(session))
    snapshots = sum(path.stat().st_size for path in (tmp_path / "run").rglob("tensors.safetensors"))
    assert expected["disk"]["snapshots"] == pytest.approx(snapshots, rel=0.25)
    again = plan(settings, Quiet(), tmp_path / "run")["measured"]
    assert again["journal_bytes"] == result["journal_bytes"] and again["peak_memory_bytes"] > 0


def _scope(session: Session) -> torch.Tensor:
    return torch.cat([target.data.reshape(-1) for target in session.optimizer.perturber.targets()])


def test_plan_reads_no_weight(config: Callable[..., TrainConfig], tiny: Any, tmp_path: Path) -> None:
    """The weights of the folder may be nonsense behind their header: the plan is the same."""
    settings = config("llama")
    before = plan(settings, Quiet())
    folder = tmp_path / "model"
    shutil.copytree(settings.model, folder)
    path = next(folder.glob("*.safetensors"))
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    data[start:] = b"\xff" * (len(data) - start)  # every number is NaN now
    path.write_bytes(data)
    assert all(bool(tensor.isnan().all()) for tensor in load_file(path).values())
    after = plan(config("llama", model=str(folder)), Quiet())
    assert {**after["memory"], "free": 0, "runtime": 0, "peak": 0} == {
        **before["memory"], "free": 0, "runtime": 0, "peak": 0
    }  # fmt: skip


def test_larger_batches_and_more_steps_cost_more(config: Callable[..., TrainConfig]) -> None:
    """Activations grow with the batch, time and journal with the steps, and lanes double what one forward holds."""
    small, large = (plan(config(batch_size=size, scope="norms"), Quiet()) for size in (2, 16))
    assert large["memory"]["activations"] > 2 * small["memory"]["activations"]
    longer = plan(config(batch_size=2, steps=700, scope="norms"), Quiet())
    assert longer["train_seconds"] == pytest.approx(100 * small["train_seconds"])
    large = plan(config(batch_size=16, scope="norms", eval=None), Quiet())
    alone = plan(config(batch_size=16, lanes="off", scope="norms", eval=None), Quiet())
    assert large["memory"]["activations"] > 1.5 * alone["memory"]["activations"]


@pytest.mark.parametrize("method", models.METHOD_ROWS)
def test_every_method_can_be_planned(config: Callable[..., TrainConfig], method: str) -> None:
    """Also one whose directions read the weights: it is said what stands for it."""
    found = plan(config(method=method, eval=None, steps=1), Quiet())
    assert found["memory"]["activations"] > 0 and found["seconds_per_step"] > 0


def test_fits_is_said(config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that needs more than there is does not fit."""
    monkeypatch.setattr("zotune.plan.free_memory_bytes", lambda device: 1000)
    assert plan(config(), Quiet())["memory"]["fits"] is False


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
@pytest.mark.parametrize("tokens", [1, 2, 3, 9])
def test_completions_are_planned_whole(config: Callable[..., TrainConfig], family: str, tokens: int) -> None:
    """Three forwards tell the operations of all tokens, and a peak that those of all do not pass by much."""
    settings = config(family, label_words=None, objective="f1", completion_column="text", max_new_tokens=tokens)
    session = Session(settings, model=meta_model(settings))
    batch = to_device(session.objective.collate(session.examples[:4]), torch.device("meta"))

    with torch.inference_mode(), Meter() as whole:
        rehearsed(session.model, batch, tokens)
    with torch.inference_mode(), Meter() as meter:
        session.objective.rehearse(session.model, batch, lambda count: setattr(meter, "times", count))
    assert total(meter.products) == pytest.approx(total(whole.products), rel=1e-9)
    assert total(meter.passes) == pytest.approx(total(whole.passes), rel=0.02)
    assert 0.95 * whole.peak <= meter.peak <= 1.25 * whole.peak


@pytest.mark.parametrize("scope", ["norms", "lora"])
def test_a_token_is_planned_with_one_position_of_the_head(config: Callable[..., TrainConfig], scope: str) -> None:
    """As `generate` asks for it, also where PEFT's forward does not name the argument."""
    settings = config(scope=scope, label_words=None, objective="f1", completion_column="text", max_new_tokens=3)
    session, positions = Session(settings, model=meta_model(settings)), list[int]()
    batch = to_device(session.objective.collate(session.examples[:4]), torch.device("meta"))
    head: Any = session.model.get_output_embeddings()  # type: ignore[operator]
    head.register_forward_pre_hook(lambda _, given: positions.append(given[0].shape[1]))
    with torch.inference_mode(), Meter():
        session.objective.rehearse(session.model, batch, lambda count: None)
    assert positions == [1, 1, 1]


def total(found: list[Any]) -> float:
    """Of the first number of each, as many times as it stands for."""
    return sum(each[0] * each[-1] for each in found)


def rehearsed(model: Any, batch: dict[str, Any], tokens: int) -> None:
    """Every token's forward, as `generate` makes them, one behind the other."""
    seen, ids, given = batch["read_mask"], batch["read"], {}
    if model.config.is_encoder_decoder:
        given["encoder_outputs"] = model.get_encoder()(input_ids=ids, attention_mask=seen)
        ids = ids[:, :1]
    for _ in range(tokens):
        named = {"decoder_input_ids" if "encoder_outputs" in given else "input_ids": ids}
        if "t5" not in type(model).__name__.lower():
            named["logits_to_keep"] = 1
        given["past_key_values"] = model(**named, **given, attention_mask=seen, use_cache=True).past_key_values
        ids = ids[:, :1]
        if "encoder_outputs" not in given:
            seen = torch.cat((seen, torch.ones_like(ids)), 1)


def test_a_run_that_generates_is_planned(config: Callable[..., TrainConfig]) -> None:
    """Forwards and journal as the run has them; longer completions take longer, and it is said that they are whole."""
    heard: list[str] = []
    options = {"label_words": None, "objective": "f1", "completion_column": "text", "steps": 2}
    watch = Quiet()
    watch.say = heard.append  # type: ignore[method-assign]
    found = plan(config(**options, max_new_tokens=3), watch)
    result = train(config(**options, max_new_tokens=3), Quiet())
    assert found["disk"]["journal"] == result["journal_bytes"] and found["forwards_per_step"] == 2
    assert any("planned with all of its 3 tokens" in line for line in heard)
    longer = plan(config(**options, max_new_tokens=12), Quiet())
    assert longer["seconds_per_step"] > 2 * found["seconds_per_step"]
    assert longer["memory"]["activations"] >= found["memory"]["activations"]


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_candidates_of_several_tokens_are_planned(
    config: Callable[..., TrainConfig], family: str, tmp_path: Path
) -> None:
    """Whether they may share a sequence cannot be shown without weights: what most models do is planned."""
    rows = [{"prompt": "it was", "chosen": " good and warm", "rejected": " a mess"}] * 8
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = {"label_words": None, "template": None, "train": tmp_path / "pairs.jsonl", "eval": None}
    settings = config(family, **pairs, scope="norms&last:1", steps=2)
    found, session = plan(settings, Quiet()), Session(settings).begin()
    batch = session.batch(session.units[0])
    assert ("segments" in batch) == (family != "t5") and found["blocks_reused"] == session.reuse.depth
    assert found["disk"]["journal"] == train(settings, Quiet())["journal_bytes"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"scorer": "vllm", "scope": "bank", "method": "lozo"}, "what vllm takes beside it is not counted"),
        ({"parallel": "data"}, "Planned for one process"),
    ],
)
def test_what_is_not_planned_is_said(config: Callable[..., TrainConfig], options: dict[str, Any], said: str) -> None:
    """An engine beside the model and the sharing of work are not foreseen, and the user is told so."""
    heard: list[str] = []
    watch = Quiet()
    watch.say = heard.append  # type: ignore[method-assign]
    plan(config(**options, eval=None, steps=1), watch)
    assert [line for line in heard if said in line]


def test_each_of_several_processes_is_planned(config: Callable[..., TrainConfig]) -> None:
    """Of shared micro-batches it has its share of the forwards and all weights; of a sharded model a part of both."""
    options: dict[str, Any] = {"eval": None, "batch_size": 8, "micro_batch_size": 2}
    alone = plan(config(**options), Quiet())
    data, both, shard = (
        plan(config(**options, parallel=mode), Quiet(), processes=2) for mode in ("data", "data+shard", "shard")
    )
    update = MACHINE.update * alone["trained"]
    forwards = alone["seconds_per_step"] - update
    assert data["seconds_per_step"] == pytest.approx(forwards / 2 + update)
    assert both["seconds_per_step"] == pytest.approx((forwards + update) / 2)
    assert shard["seconds_per_step"] == pytest.approx(forwards + update / 2)
    assert data["memory"]["weights"] == alone["memory"]["weights"] != both["memory"]["weights"]
    assert both["memory"]["weights"] == shard["memory"]["weights"]
    with pytest.raises(ConfigError, match="5 processes share the work of a step, which has 4 parts"):
        plan(config(**options), Quiet(), processes=5)


def test_a_run_that_cannot_be_served_is_not_planned(config: Callable[..., TrainConfig]) -> None:
    """The plan refuses what the run would refuse."""
    with pytest.raises(ConfigError, match="a server perturbs by adapters"):
        plan(config(scorer="vllm", steps=1), Quiet())
