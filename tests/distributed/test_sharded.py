"""Sharded models end with the bits of whole ones, in any number of processes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.distributed.conftest import ENVIRONMENT
from tests.distributed.test_parallel import BUSY, Crowd, wrong
from torch import nn

from zotune.config import TrainConfig
from zotune.distributed.sharded import gathered, is_part, is_sharded, own_part, put, released, sharded_modules, whole
from zotune.load import load_model
from zotune.methods import METHODS
from zotune.rebuild import replay

SHARD, ROWS = ["--parallel", "shard"], ["--parallel", "data+shard"]
# Their directions or rules read weights, layers' inputs, or keep a number for each weight.
WHOLE = {"sparse_mezo", "agzo", "aimzo", "lozo_m", "hizoo", "conmezo", "loren"}

Shards = Callable[..., dict[str, Any]]


@pytest.fixture
def shards(tmp_path: Path) -> Shards:
    """`shards(kind, cases)`: what shards.py found."""

    def run(kind: str, cases: dict[str, Any] | None = None) -> dict[str, Any]:
        (tmp_path / "job.json").write_text(json.dumps({"folder": str(tmp_path / "work"), "cases": cases}))
        program = [sys.executable, str(Path(__file__).with_name("shards.py")), kind, str(tmp_path / "job.json")]
        done = subprocess.run(program, capture_output=True, text=True, env=ENVIRONMENT, timeout=500, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    return run


def test_sharded_models_end_with_the_bits_of_whole_ones(shards: Shards) -> None:
    """Rows that no number of processes divides, tied tables: the losses and weights of one process, in 16 bits too."""
    found = shards(
        "methods",
        {
            "gaussian": (3, "mezo", "float32", {}),
            "rademacher": (2, "mezo", "float32", {"law": "rademacher", "queries": 2, "lanes": "off"}),
            "16 bits": (3, "mezo", "bfloat16", {"weight_decay": 0.1}),
            "low rank": (2, "lozo", "float32", {"interval": 2}),
            "folded": (3, "lozo", "bfloat16", {"interval": 2, "fold_every": 2}),
            "refused": (2, "sparse_mezo", "float32", {}),
        },
    )
    refused = found.pop("refused")
    assert {name: one for name, one in found.items() if not one["same"]} == {}
    assert refused["codes"] == [0, 0] and len(refused["errors"]) == 2
    assert "sparse_mezo needs whole tensors" in refused["errors"][0] and "Remedy: mezo or lozo" in refused["errors"][0]


@pytest.mark.slow
def test_every_method_on_a_sharded_model(shards: Shards) -> None:
    """Each row of the method table: the bits of a whole model, or a refusal before the first step.

    QZO is left out: it trains the scales of packed layers, which are not sharded.
    """
    names = [name for name in METHODS if name != "qzo"]
    found = shards("methods", {name: (2 + number % 2, name, "float32", {}) for number, name in enumerate(names)})
    assert {name for name, one in found.items() if one["errors"]} == WHOLE
    assert {name for name, one in found.items() if not one["same"]} == WHOLE


def test_what_a_sharded_model_can_do(shards: Shards) -> None:
    """Layouts that are refused say why; a forward that was broken off leaves no trace; each process has its rows."""
    found = shards("limits")
    alone = found.pop("alone")
    for name, said in {
        "mixed precision": "is torch.float32 on cpu and torch.bfloat16 on cpu in the forward pass",
        "by columns": "is laid out as (Shard(dim=1),). Remedy: fully_shard by the first dimension",
        "another mode": "parallel is 'data'. Remedy: parallel 'data+shard' or 'shard'",
        "example by example": "grzo may run its examples one by one",
    }.items():
        assert found[name]["codes"] == [0, 0] and said in found[name]["found"][0]["error"], found[name]
    assert found["broken off"]["found"] == [{"loss": alone["loss"]}] * 2
    assert found["checked"]["found"] == [alone["checked"]] * 2
    parts = found["noise"]["found"]
    assert all(part["all"] and part["again"] for part in parts)
    assert sum(part["own"] for part in parts) == alone["elements"]


def test_runs_of_sharded_models(crowd: Crowd) -> None:
    """Under torchrun: journal, metrics and final hash of one process, snapshots and evaluations on the way."""
    found = crowd(
        "courses",
        {
            "courses": {
                "dense": ([3], SHARD),
                "low-rank": ([2], [*SHARD, "--method", "lozo", "--dtype", "bfloat16", "--interval", "3"]),
            }
        },
        **BUSY,
    )
    assert wrong(found) == {}


def test_rows_over_shards(crowd: Crowd) -> None:
    """Each process at its own micro-batches of a sharded model, also where they do not come out even: the same bytes.

    A process sends the losses of its own alone: of four micro-batches two have two each.
    """
    found = crowd(
        "courses",
        {
            "courses": {
                "even": ([2], [*ROWS, "--queries", "2"]),
                "left over": ([3], ROWS),
                "low-rank": ([3], [*ROWS, "--method", "lozo", "--dtype", "bfloat16", "--interval", "3"]),
                "below the scope": ([3], [*ROWS, "--scope", "last:1"]),
                "one by one": ([2], [*ROWS, "--lanes", "off"]),
                "a bank": ([2], [*ROWS, "--scope", "bank", "--method", "lozo", "--interval", "3"]),
            }
        },
        **BUSY,
    )
    assert wrong(found) == {}
    assert found["even"]["2"]["message_bytes"] == 5 + 22 + 2 * 4 * (4 + 3 * 8)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", [SHARD, ROWS], ids=["all", "rows"])
@pytest.mark.parametrize(
    ("family", "flags"),
    [
        ("gpt2", []),
        ("gpt2", ["--scope", "last:1"]),
        ("bert", []),
        ("t5", ["--scope", "last:1"]),
        ("llama", ["--scope", "lora"]),
        ("deep", ["--blocks", "cycle"]),
    ],
)
def test_families_of_sharded_models(crowd: Crowd, family: str, flags: list[str], parallel: list[str]) -> None:
    """Tied heads, masked models, encoders with decoders, adapters, a part of the blocks in each step."""
    found = crowd("courses", {"courses": {"run": ([3], [*parallel, *flags])}}, family=family, **BUSY)
    assert wrong(found) == {}


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["shard", "data+shard"])
def test_sharded_runs_go_on(crowd: Crowd, parallel: str) -> None:
    """SIGKILL to either process, also while the other waits for its weights; the restart ends with the same bytes."""
    batches = {"batch_size": 8 if "data" in parallel else 4, "micro_batch_size": 2}
    found = crowd("kills", parallel=parallel, eval_every=3, snapshot_every=2, **batches)
    refused = found.pop("refused")
    for name, one in found.items():
        assert one["same"] and set(one["again"]) == {0} and -9 in one["codes"], (name, one)
        assert 0 not in one["codes"] and "hangs" not in one["codes"], (name, one)
    assert refused["without a restart"] == [4, 4] == refused["other options"] and refused["same"]


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["shard", "data+shard"])
def test_sharded_runs_stop_together(crowd: Crowd, parallel: str) -> None:
    """A signal to one process stops all after the step, with its exit code; `resume` ends the same."""
    found = crowd("signals", parallel=parallel, steps=40, micro_batch_size=2, eval=None)
    for name, one in found.items():
        code = 143 if "SIGTERM" in name else 130
        assert one["codes"] == [code, code] and one["late"] <= 2 and 3 <= one["steps"] < 40, (name, one)
        assert one["same"] and one["again"] == [0, 0] and not one["locked"], (name, one)


@pytest.mark.parametrize("parallel", ["shard", "data+shard"])
def test_one_process_fails_in_a_forward(crowd: Crowd, parallel: str) -> None:
    """It says why and goes, and the other, who waits for its weights, sees that soon; where all fail, none goes."""
    found = crowd("alone_in_a_shard", {"parallel": parallel}, micro_batch_size=2, eval=None)
    assert found.pop("left out") == {"codes": [0, 0, 0], "same": True}
    for rank, (name, one) in enumerate(found.items()):
        assert one["codes"][rank] == 2 and one["codes"][1 - rank] == 4, (name, one)
        assert "the reward is a sock" in one["said"][rank] and "is gone" in one["said"][1 - rank], (name, one)
        assert one["seconds"] < 30 and 0 < one["steps"] < 7, (name, one)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus(config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    """Weights gathered by NCCL: the run's hash is that of its journal replayed in one process on the CPU."""
    file = tmp_path / "config.yaml"
    file.write_text(config(device="cuda", eval=None, dtype="bfloat16").to_yaml())
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "zotune"]
    done = subprocess.run(
        [*launch, "train", "--config", str(file), *SHARD, "--json"],
        capture_output=True, text=True, env=ENVIRONMENT, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert replay(tmp_path / "run" / "journal.zoj", load_model(config(dtype="bfloat16")))["verified"]


def test_whole_tensors_are_their_own_part() -> None:
    """Nothing changes for a model that is not sharded."""
    model, tensor = nn.Linear(3, 2), torch.arange(6.0).view(2, 3)
    assert not is_sharded(model) and sharded_modules(model) == [] and not is_part(model.weight)
    assert whole(tensor) is tensor and own_part(tensor) == (tensor, 0)
    assert gathered({"w": tensor}, keep=False)["w"] is tensor
    put(model.weight.detach(), tensor)
    assert torch.equal(model.weight, tensor)
    with pytest.raises(ZeroDivisionError), released(model):
        raise ZeroDivisionError
    assert TrainConfig.__dataclass_fields__["parallel"].default is None
