"""Restarts, failures and signals: nobody waits for a process that is gone, and nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zotune.config import TrainConfig
from zotune.train import train
from zotune.watch import Quiet

Crowd = Callable[..., dict[str, Any]]
BUSY: dict[str, Any] = {"eval_every": 3, "snapshot_every": 2, "micro_batch_size": 2}


def test_killed_processes_are_started_again(crowd: Crowd) -> None:
    """SIGKILL to either of two processes: the other ends too, the restart continues, and the bytes are the same."""
    found = crowd("kills", **BUSY)
    refused = found.pop("refused")
    for name, one in found.items():
        assert one["same"] and set(one["again"]) == {0} and -9 in one["codes"], (name, one)
        assert 0 not in one["codes"] and "hangs" not in one["codes"], (name, one)
    assert found["process 0 before a record"]["steps"] == 3 and found["process 0 in an update"]["steps"] == 4
    assert refused["without a restart"] == [4, 4] == refused["other options"] and refused["same"]
    assert "holds a run already" in refused["said"][0]


def test_a_failure_is_one_of_all(crowd: Crowd) -> None:
    """An error of one process ends all, soon, with codes that say what it was; what was recorded stays."""
    found = crowd("failures", **BUSY)
    expected: dict[str, tuple[list[int], int, str]] = {
        "a loss is not finite": ([6, 6], 3, "process 1: the loss is nan at step 3"),
        "a user's error": ([2, 2], 3, "process 1: the reward is a sock"),
        "a user's error in process 0": ([2, 2], 3, "the reward is a sock"),
        "a bug": ([4, 70], 3, "process 1 failed: RuntimeError: a bug"),
        "a full disk": ([4, 4], 3, "the disk is full"),
        "weights that part": ([4, 4, 4], 4, "process 1 differs from the others in the weights after 4 steps"),
        "weights that part, two processes": ([4, 4], 4, "which of them is right cannot be told"),
        "an option": ([3, 3], -1, "2 label words"),
        "no work": ([2, 2, 2, 2], -1, "4 processes share the work of a step, which has 1 part"),
        "lanes": ([2, 2], -1, "lanes cannot be on"),
        "another base": ([4, 4], -1, "process 1 differs from the other in scope_sha256"),
    }
    left_out = found.pop("left out")
    for name, (codes, steps, said) in expected.items():
        one = found[name]
        assert (one["codes"], one["steps"], one["locked"]) == (codes, steps, False), (name, one)
        assert said in one["said"][0] and "Remedy" in one["said"][0], (name, one["said"])
        assert one["seconds"] < 30, (name, one["seconds"])
    assert found.keys() == expected.keys()
    assert left_out == {"codes": [0, 0, 0], "same": True, "steps": 7}


def test_signals(crowd: Crowd) -> None:
    """SIGTERM is 143 and Ctrl-C 130 in all processes, after at most one more step; `resume` ends the same."""
    found = crowd("signals", steps=40, micro_batch_size=2, eval=None)
    for name, one in found.items():
        code = 143 if "SIGTERM" in name else 130
        assert one["codes"] == [code, code] and one["late"] <= 2 and 3 <= one["steps"] < 40, (name, one)
        assert one["same"] and one["again"] == [0, 0] and not one["locked"], (name, one)
        assert "continue with `zotune resume" in one["said"][0] and "Traceback" not in "".join(one["said"]), one["said"]


@pytest.mark.slow
def test_torchrun_restarts_what_was_killed(config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    """The real launcher: both processes are killed in turn and started again; the run ends as if undisturbed."""
    busy = {"steps": 150, "micro_batch_size": 4, "snapshot_every": 20, "eval": None}
    train(config(output_dir=tmp_path / "whole", **busy), Quiet())
    run, file = tmp_path / "run", tmp_path / "config.yaml"
    file.write_text(config(**busy).to_yaml())
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    launch += [
        "--max-restarts",
        "2",
        "-m",
        "zotune",
        "train",
        "--config",
        str(file),
        "--output-dir",
        str(run),
        "--json",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with subprocess.Popen(launch, stdout=subprocess.PIPE, text=True, env=environment) as process:
        for kill, bytes_before in (("process 0", 4_000), ("process 1", 6_000)):
            while not (run / "journal.zoj").exists() or (run / "journal.zoj").stat().st_size < bytes_before:
                assert process.poll() is None
                time.sleep(0.01)
            first = json.loads((run / "lock").read_text())["pid"]
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            workers = [int(pid) for pid in children if b"zotune" in Path(f"/proc/{pid}/cmdline").read_bytes()]
            assert first in workers and len(workers) == 2
            os.kill(first if kill == "process 0" else next(pid for pid in workers if pid != first), signal.SIGKILL)
            while first in map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()):
                time.sleep(0.01)
        output, _ = process.communicate(timeout=200)
    assert process.returncode == 0 and json.loads(output.splitlines()[-1])["processes"] == 2
    for name in ("journal.zoj", "metrics.jsonl"):
        assert (run / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_agents_that_count_apart_meet_again(config: Callable[..., TrainConfig], tmp_path: Path, rank: int) -> None:
    """Two launchers, as on two machines: the process of one is killed, both start theirs anew with different counts of
    restarts, and the run ends as if undisturbed.
    """
    busy = {"steps": 120, "micro_batch_size": 4, "snapshot_every": 20, "eval": None}
    train(config(output_dir=tmp_path / "whole", **busy), Quiet())
    run, file = tmp_path / "run", tmp_path / "config.yaml"
    file.write_text(config(**busy).to_yaml())
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    launch += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}", "--max-restarts", "2"]
    launch += ["-m", "zotune", "train", "--config", str(file), "--output-dir", str(run)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    agents = [subprocess.Popen(launch, env=environment, stderr=subprocess.DEVNULL) for _ in range(2)]
    try:
        while not (run / "journal.zoj").exists() or (run / "journal.zoj").stat().st_size < 4_000:
            assert all(agent.poll() is None for agent in agents)
            time.sleep(0.01)
        victim = next(pid for agent in agents for pid in workers_of(agent.pid) if rank_of(pid) == rank)
        os.kill(victim, signal.SIGKILL)
        assert [agent.wait(200) for agent in agents] == [0, 0]
    finally:
        for agent in agents:
            agent.kill()
            agent.wait()
    for name in ("journal.zoj", "metrics.jsonl"):
        assert (run / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def workers_of(agent: int) -> list[int]:
    """The zotune processes that a launcher has started."""
    children = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
    return [int(pid) for pid in children if b"zotune" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def rank_of(pid: int) -> int:
    """The rank in its environment."""
    given = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next(int(each[5:]) for each in given if each.startswith(b"RANK="))
