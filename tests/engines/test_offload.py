"""Offload: blocks wait at home and come for their own forward; every bit is that of a run without it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from tests import models
from tests.engines.blocks import deep, squared
from tests.models import batch_for, loss, record_of, same_bits, seeded, tiny, train, weights
from torch import Tensor

import zotune
from zotune.config import TrainConfig
from zotune.engines.offload import Offload
from zotune.errors import ConfigError
from zotune.estimate import Point
from zotune.history.checkout import checkout
from zotune.history.verify import verify
from zotune.load import load_model
from zotune.methods import METHODS
from zotune.noise import Key
from zotune.optimizer import ZerothOrder
from zotune.plan import plan
from zotune.rebuild import steps_of
from zotune.revisit import evaluate_run, replay
from zotune.train import resume
from zotune.train import train as run_training
from zotune.watch import Quiet

Config = Callable[..., TrainConfig]
one_thread = models.one_thread

# Whose updates can wait: no state beyond the weights, and directions that depend on key and tensor alone.
WAITING = ("mezo", "sparse_mezo", "lozo", "fzoo", "es", "eggroll", "kerzoo")
COURSES: dict[str, tuple[str, dict[str, Any]]] = {
    "mezo": ("mezo", {}),
    "signs": ("mezo", {"law": "rademacher"}),
    "queries": ("mezo", {"queries": 3}),
    "decay": ("mezo", {"weight_decay": 0.1}),
    "sparse": ("sparse_mezo", {}),
    "lozo": ("lozo", {}),
    "lozo-folded": ("lozo", {"fold_every": 3}),
    "cycle": ("lozo", {"blocks": "cycle"}),
    "sequential": ("mezo", {"lanes": "off"}),
}


def pair(
    method: str, family: str, dtype: torch.dtype, place: dict[str, Any], **options: Any
) -> tuple[ZerothOrder, ZerothOrder, Offload]:
    """The same optimizer on the same weights, without and with offload."""
    plain, streamed = tiny(family, dtype), tiny(family, dtype)
    offload = Offload(streamed, **place)
    return (
        train(method, plain, lr=1e-2, **options),
        train(method, streamed, lr=1e-2, offload=offload, **options),
        offload,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("home", ["cpu", "disk"])
@pytest.mark.parametrize("course", COURSES)
def test_the_bits_are_those_of_a_run_without_it(
    course: str, home: Literal["cpu", "disk"], dtype: torch.dtype, tmp_path: Path
) -> None:
    """Seven steps: every loss and every weight, with blocks in memory and on disk."""
    method, options = COURSES[course]
    plain, streamed, _ = pair(method, "llama", dtype, {"home": home, "folder": tmp_path}, **options)
    for step in range(7):
        batch = batch_for("llama", seed=step)
        assert plain.step(loss, batch) == streamed.step(loss, batch)
    before = weights(tiny("llama", dtype))
    streamed.weights()
    plain.fold()
    assert same_bits(weights(plain.model), weights(streamed.model))
    assert not same_bits(before, weights(streamed.model))


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize("family", ["gpt2", "t5", "bert", "gemma3", "qwen3_moe"])
def test_any_family_and_blocks_that_are_brought_ahead(family: str, ahead: int) -> None:
    """Tied weights, two lists of blocks, experts; the room of the next block is another one."""
    plain, streamed, offload = pair("mezo", family, torch.float32, {"ahead": ahead})
    for step in range(3):
        batch = batch_for(family, seed=step)
        assert plain.step(loss, batch) == streamed.step(loss, batch)
    with streamed.settled(), torch.inference_mode():
        assert torch.equal(loss(streamed.model, batch), loss(plain.model, batch))
    assert same_bits({n: w.clone() for n, w in streamed.weights().items()}, dict(plain.perturber.weights()))
    assert offload.rooms == 1 + ahead
    assert len(offload.parts) == (4 if family == "t5" else 2)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_runs_with_it_or_says_why_not(method: str) -> None:
    """What learns from its steps is refused before the first one, by name."""
    model = tiny("llama")
    if method not in WAITING:
        with pytest.raises(ConfigError, match=f"an update of {method} needs more than.* Remedy: leave --offload out"):
            train(method, model, offload=Offload(model))
        return
    plain, streamed, _ = pair(method, "llama", torch.float32, {})
    for step in range(2):
        plain.step(loss, batch_for("llama", seed=step))
        streamed.step(loss, batch_for("llama", seed=step))
    plain.fold()
    streamed.weights()
    assert same_bits(weights(plain.model), weights(streamed.model))


def counted(offload: Offload, what: Callable[[], Any]) -> dict[str, int]:
    """How often each block came to the device during a call."""
    before = dict(offload.crossings)
    what()
    return {name: count - before[name] for name, count in offload.crossings.items()}


def test_each_block_crosses_once_in_a_step() -> None:
    """Both sides ride in one forward, and the update of the step before in the same pass; back go only updates."""
    model = tiny("llama")
    offload = Offload(model)
    optimizer = train("mezo", model, lr=1e-2, offload=offload)
    optimizer.step(loss, batch_for("llama"))
    assert optimizer.evaluator.mode == "lanes" and offload.sent == 0
    for step in range(2, 5):
        brought = offload.brought
        assert set(counted(offload, lambda: optimizer.step(loss, batch_for("llama"))).values()) == {1}
        assert offload.brought - brought == offload.sizes.streamed
        assert offload.sent == (step - 1) * offload.sizes.streamed
    assert set(counted(offload, optimizer.weights).values()) == {1}
    assert set(counted(offload, optimizer.weights).values()) == {0}


def test_a_replay_is_one_crossing() -> None:
    """Twenty recorded steps wait, and are all done when a block comes by."""
    model, plain = tiny("llama"), tiny("llama")
    offload = Offload(model)
    optimizer, other = train("mezo", model, offload=offload), train("mezo", plain)
    crossings = counted(
        offload,
        lambda: [each.replay(record_of(each, step, 1e-2)) for step in range(20) for each in (optimizer, other)],
    )
    assert set(crossings.values()) == {0}
    assert set(counted(offload, optimizer.weights).values()) == {1}
    assert same_bits(weights(model), weights(plain))


class Device:
    """A device of few bytes: every Room is made of them, and gives them back when nothing holds it any more."""

    def __init__(self, budget: int) -> None:
        self.budget, self.held, self.most = budget, 0, 0

    def take(self, size: int) -> None:
        self.held += size
        self.most = max(self.most, self.held)
        assert self.held <= self.budget, f"{self.held} bytes on a device of {self.budget}"

    def give(self, size: int) -> None:
        self.held -= size


def test_a_device_much_smaller_than_the_model_is_enough(tmp_path: Path) -> None:
    """Every tensor alive at once on the device, scratch included, fits into a budget of a quarter of the weights."""
    import weakref

    from torch.utils._python_dispatch import TorchDispatchMode

    model = deep(32, 256)
    total = sum(parameter.nbytes for parameter in model.parameters())
    block = model.blocks[0].linear.weight.nbytes
    offload = Offload(model, home="disk", folder=tmp_path)
    device = Device(total // 4)
    device.take(offload.sizes.resident)
    known: Any = weakref.WeakKeyDictionary()
    home = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    class Account(TorchDispatchMode):  # type: ignore[misc]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            for tensor in torch.utils._pytree.tree_leaves(out):
                if isinstance(tensor, Tensor) and tensor.untyped_storage() not in known:
                    storage = tensor.untyped_storage()
                    known[storage] = True
                    if storage.data_ptr() not in home:
                        device.take(storage.nbytes())
                        weakref.finalize(storage, device.give, storage.nbytes())
            return out

    optimizer = train("mezo", model, lr=1e-3, law="rademacher", offload=offload)
    with Account():
        for seed in range(3):
            optimizer.step(squared, {"x": models.normals((4, 256), seed)})
    assert 3 * block < device.most < total // 4 and offload.rooms == 1
    assert offload.device_bytes == offload.sizes.resident + block


def test_evaluating_writes_nothing() -> None:
    """Weights at home and on the device keep their bits at any point, with a mask that reads them."""
    model = tiny("llama", torch.bfloat16)
    optimizer = train("sparse_mezo", model, offload=Offload(model))
    before = weights(model)
    for step in range(3):
        optimizer.evaluator.losses(loss, batch_for("llama"), [Point(Key(0, step), s) for s in (0.3, -0.3)])
    assert same_bits(weights(model), before)


def test_a_forward_that_fails_inside_a_block_leaves_the_model_whole() -> None:
    """After an error, also one that no hook sees, the parameters are where they were and the next forward is right."""
    model = deep(3, 8)
    batch = {"x": models.normals((4, 8), 1)}
    expected, names = squared(model, batch), [id(parameter) for parameter in model.parameters()]
    Offload(model)
    for error in (ValueError, KeyboardInterrupt):

        def fail(*_: Any, error: type[BaseException] = error) -> None:
            raise error

        hook = model.blocks[1].linear.register_forward_hook(fail)
        with pytest.raises(error):
            squared(model, batch)
        hook.remove()
        assert torch.equal(squared(model, batch), expected)
        assert [id(parameter) for parameter in model.parameters()] == names


# --- whole runs -------------------------------------------------------------------------------------------------------

BUSY: dict[str, Any] = {"eval_every": 3, "snapshot_every": 2, "micro_batch_size": 4}
RUNS: dict[str, dict[str, Any]] = {
    "mezo": {},
    "sparse-bfloat16": {"method": "sparse_mezo", "dtype": "bfloat16"},
    "lozo": {"method": "lozo", "method_args": {"rank": 2, "interval": 3}},
    "reuse": {"scope": "last:1"},
    "lora": {"scope": "lora"},
    "seq2seq": {"family": "t5"},
}


def state(run: Path) -> tuple[bytes, bytes]:
    return (run / "journal.zoj").read_bytes(), (run / "metrics.jsonl").read_bytes()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT reading a model of transformers
@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_the_same_to_the_byte_and_so_is_a_resumed_one(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Journal and metrics; stopped when some blocks have the last update and others have not."""
    options = {**BUSY, **RUNS[name], "offload": "cpu"}
    plain = run_training(config(**{**options, "offload": None, "output_dir": tmp_path / "plain"}), Quiet())
    whole = run_training(config(**options, output_dir=tmp_path / "whole"), Quiet())
    assert state(tmp_path / "whole") == state(tmp_path / "plain")
    assert whole["weights_sha256"] == plain["weights_sha256"]
    entered, inner = [0], Offload._enter

    def stopping(self: Offload, part: Any) -> None:
        entered[0] += 1
        if entered[0] % 41 == 0:
            raise KeyboardInterrupt
        inner(self, part)

    monkeypatch.setattr(Offload, "_enter", stopping)
    stops = 0
    for start in (lambda: run_training(config(**options), Quiet()), *[lambda: resume(tmp_path / "run", Quiet())] * 30):
        try:
            assert start()["weights_sha256"] == plain["weights_sha256"]
            break
        except KeyboardInterrupt:
            stops += 1
            entered[0] = stops * 17  # not always at the same place
    monkeypatch.undo()
    resume(tmp_path / "run", Quiet())
    assert stops >= 1 and state(tmp_path / "run") == state(tmp_path / "plain")


KILLED = """
import os, signal, sys
from zotune.cli import main
from zotune.engines.offload import Offload
entered, inner = [0], Offload._enter
def enter(self, part):
    entered[0] += 1
    if entered[0] == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    inner(self, part)
Offload._enter = enter
main(sys.argv[2:])
"""


def test_killed_on_disk_between_two_blocks(config: Config, tmp_path: Path) -> None:
    """SIGKILL with half of the blocks updated on disk: the file is gone with its process, the journal is enough."""
    options = {**BUSY, "dtype": "bfloat16"}
    model = tmp_path / "model"
    load_model(config(dtype="bfloat16")).save_pretrained(model)
    for file in Path(config().model).glob("tokenizer*"):
        (model / file.name).write_bytes(file.read_bytes())
    plain = run_training(config(**options, model=str(model), output_dir=tmp_path / "plain"), Quiet())
    settings = config(**options, model=str(model), offload="disk")
    (tmp_path / "config.yaml").write_text(settings.to_yaml())
    command = [sys.executable, "-c", KILLED, "62", "train", "--config", str(tmp_path / "config.yaml")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, check=False, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert left <= {"config.yaml", "journal.zoj", "metrics.jsonl", "snapshots", "lock"}
    assert 1 <= len(steps_of(zotune.journal.read(tmp_path / "run" / "journal.zoj")[1])) < 7
    assert resume(tmp_path / "run", Quiet())["weights_sha256"] == plain["weights_sha256"]
    assert state(tmp_path / "run") == state(tmp_path / "plain")


def test_what_can_be_done_with_such_a_run(config: Config, tmp_path: Path) -> None:
    """Replay, verify, evaluate and checkout stream the blocks too, and find the run's weights."""
    settings = config(**BUSY, offload="disk")
    found = run_training(settings, Quiet())
    run = tmp_path / "run"
    assert replay(run, True, Quiet())["weights_sha256"] == found["weights_sha256"]
    assert verify(run, Quiet())["weights_sha256"] == found["weights_sha256"]
    assert evaluate_run(settings, run, Quiet())["loss"] == found["loss_after"]
    assert checkout(run, 5, tmp_path / "five", Quiet())["steps"] == 5
    model = load_model(config())
    zotune.replay(run / "journal.zoj", model, steps=5)
    assert same_bits(weights(model), weights(load_model(config(model=str(tmp_path / "five")))))


def test_the_plan_counts_a_block_instead_of_all(
    config: Config, monkeypatch: pytest.MonkeyPatch, tiny: Callable[[str], Path]
) -> None:
    """On disk the weights in memory are those that stay and one room; what lies on disk is told."""
    from zotune.calibrate import Machine

    machine = Machine(1 << 20, 1 << 20, {1: 1e9, 1000: 1e10}, {1: 1e9, 1000: 1e10}, 1e-6, 1e-8, 1e-8)
    monkeypatch.setattr("zotune.plan.calibrate", lambda *_: machine)
    plain, disk, cpu = (plan(config("deep", offload=each), Quiet()) for each in (None, "disk", "cpu"))
    offload = Offload(load_model(config("deep")))
    assert plain["memory"]["weights"] == offload.sizes.resident + offload.sizes.streamed
    assert disk["memory"]["weights"] == offload.sizes.resident + offload.sizes.room < plain["memory"]["weights"] / 2
    assert cpu["memory"]["weights"] == plain["memory"]["weights"] + offload.sizes.room
    assert (plain["disk"]["blocks"], disk["disk"]["blocks"]) == (0, offload.sizes.streamed)


def test_options_that_do_not_fit_are_refused_first(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another dtype than that of the files on disk, and a method with a state: nothing is begun."""
    monkeypatch.setattr("zotune.plan.calibrate", lambda *_: None)
    with pytest.raises(ConfigError, match=r"as they are stored \(F32\), not as bfloat16. Remedy: --dtype auto"):
        run_training(config(offload="disk", dtype="bfloat16"), Quiet())
    for begin in (run_training, plan):
        with pytest.raises(ConfigError, match="an update of hizoo needs more than"):
            begin(config(offload="cpu", method="hizoo"), Quiet())
    assert not (tmp_path / "run" / "journal.zoj").exists()


MEMORY = """
import json, sys, torch
from pathlib import Path
from transformers import AutoModelForCausalLM
import zotune
from zotune.engines.offload import Offload
def held():
    return next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l.startswith("RssAnon"))
def loss(model, batch):
    return model(**batch, use_cache=False).logits.float().square().mean((1, 2))
torch.set_num_threads(1)
batch = {"input_ids": torch.arange(8).view(2, 4)}
warm = AutoModelForCausalLM.from_config(AutoModelForCausalLM.from_pretrained(sys.argv[2]).config)
zotune.MeZO(warm, law="rademacher").step(loss, batch)
before, peak = held(), [0]
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
offload = Offload(model, home="disk", folder=Path(sys.argv[1]))
for part in offload.parts:
    part.module.register_forward_hook(lambda *_: peak.__setitem__(0, max(peak[0], held())))
optimizer = zotune.MeZO(model, lr=1e-4, law="rademacher", lanes="off", offload=offload)
for _ in range(2):
    optimizer.step(loss, batch)
peak[0] = max(peak[0], held())
print(json.dumps([peak[0] - before, offload.sizes.streamed]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's account of a process's memory")
def test_memory_of_a_process_with_blocks_on_disk(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """An OPT with 142 MB of blocks on disk trains with half as much memory of its own."""
    import json

    import transformers as hf

    from zotune.load import quiet

    sizes = {"hidden_size": 768, "word_embed_proj_dim": 768, "ffn_dim": 3072, "num_attention_heads": 12}
    with quiet():
        made = hf.OPTConfig(vocab_size=64, num_hidden_layers=10, max_position_embeddings=64, **sizes)
        seeded(lambda: hf.OPTForCausalLM(made)).to(torch.bfloat16).save_pretrained(tmp_path / "opt")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ZOTUNE_KERNELS": "eager"}
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "opt"), str(tiny("llama"))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    rose, streamed = json.loads(done.stdout)
    assert 140e6 < streamed and rose < streamed / 2, rose


@pytest.mark.parametrize("method", ["mezo", "lozo"])
def test_a_device_with_a_number_is_that_of_its_tensors(method: str) -> None:
    """What is kept for each device is found again under the name that tensors there have: the same bits as without."""
    ends = []
    for streamed in (False, True):
        model = deep(4, 64)
        optimizer = train(method, model, **({"offload": Offload(model, "cpu:0")} if streamed else {}))
        for seed in range(2):
            optimizer.step(squared, {"x": models.normals((4, 64), seed)})
        ends.append(optimizer.weights())
    assert same_bits(*ends)


@pytest.mark.gpu
@pytest.mark.parametrize("home", ["cpu", "disk"])
def test_a_gpu_computes_the_same_with_blocks_at_home(home: Literal["cpu", "disk"], tmp_path: Path) -> None:
    """Copies beside the computation: every loss and weight of ten steps is that of the model that lies on the GPU."""
    for method in ("mezo", "sparse_mezo", "lozo"):
        plain, streamed = deep(12, 512).cuda(), deep(12, 512)
        offload = Offload(streamed, "cuda", home, tmp_path)
        both = [train(method, plain, lr=1e-3), train(method, streamed, lr=1e-3, offload=offload)]
        for seed in range(10):
            batch = {"x": models.normals((4, 512), seed).cuda()}
            assert both[0].step(squared, batch) == both[1].step(squared, batch)
        found = {name: weight.cpu() for name, weight in both[1].weights().items()}
        assert same_bits(found, {name: weight.cpu() for name, weight in both[0].weights().items()})
        assert offload.rooms == 2
