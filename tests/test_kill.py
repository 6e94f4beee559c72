"""SIGKILL at any moment: a run that is resumed afterwards ends with the bytes of the undisturbed one.

The work is done by killing.py, in a process of its own.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zotune.config import TrainConfig

KILLS = 50


@pytest.fixture
def job(config: Callable[..., TrainConfig], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """`job(kind, **config)`: what killing.py found."""

    def run(kind: str, seed: int = 1, **options: Any) -> dict[str, Any]:
        file, work = tmp_path / "config.yaml", tmp_path / "work"
        file.write_text(config(**options).to_yaml())
        order = {"kind": kind, "folder": str(work), "config": str(file), "seed": seed, "kills": KILLS}
        (tmp_path / "job.json").write_text(json.dumps(order))
        program = [sys.executable, str(Path(__file__).with_name("killing.py")), str(tmp_path / "job.json")]
        done = subprocess.run(program, capture_output=True, text=True, env=ENVIRONMENT, timeout=500, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    return run


ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
BUSY = {"eval_every": 3, "snapshot_every": 2, "micro_batch_size": 4, "lr_schedule": "linear", "warmup_steps": 2}


def test_fifty_random_kills(job: Callable[..., dict[str, Any]]) -> None:
    """50 kills spread over start-up, training and resuming: journal and metrics end as if there had been none."""
    found = job("random", steps=12, dtype="bfloat16", **BUSY)
    assert found["kills"] >= KILLS and found["different"] == []
    # They did fall everywhere: before the first step, on the way, and near the end.
    assert min(found["steps"]) <= 0 and max(found["steps"]) > 8 and len(set(found["steps"])) > 6, found["steps"]


@pytest.mark.parametrize("scope", ["full", pytest.param("prefix", marks=pytest.mark.slow)])
def test_kills_at_every_weak_point(job: Callable[..., dict[str, Any]], scope: str) -> None:
    """Between any two things that a step writes, and in the middle of each: the same bytes after a resume."""
    found = job("points", scope=scope, **BUSY)
    assert [name for name, how in found.items() if not how["same"]] == []
    if scope == "prefix":  # one tensor: some points lie behind the end
        return
    assert [name for name, how in found.items() if how["first"] != "killed"] == []
    # The points are where their names say.
    assert found["before the journal"]["steps"] == -1 and found["after the journal's header"]["steps"] == 0
    assert found["before a record"]["steps"] == found["half a record"]["steps"] == 2
    assert found["after a record, before its update"]["steps"] == 3
    assert found["in an update, between two tensors"]["steps"] == 4
    assert found["between a snapshot and its hash"]["steps"] == 4
    assert found["before the last hash"]["steps"] == 7


def test_signals(job: Callable[..., dict[str, Any]]) -> None:
    """SIGTERM is 143 and Ctrl-C 130, both with the command that continues; the lock is free and the end the same."""
    found = job("signals", steps=40, **BUSY)
    for name, code in (("SIGTERM", 143), ("SIGINT", 130)):
        how = found[name]
        assert (how["code"], how["locked"], how["same"]) == (code, False, True), how
        assert 2 <= how["steps"] < 40
        line, last = how["said"].splitlines()[-2:]
        assert f"continue with `zotune resume {how['run']}`" in line and "Traceback" not in how["said"]
        assert "zotune resume" in json.loads(last)["error"]


@pytest.mark.slow
def test_kills_of_the_real_command(config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    """`python -m zotune` as a user starts it, killed ten times with its interpreter, then resumed to its end."""
    file, draw = tmp_path / "config.yaml", random.Random(2)
    file.write_text(config(steps=20, **BUSY).to_yaml())

    def popen(run: Path) -> subprocess.Popen[bytes]:
        begin = ["train", "--config", str(file), "--output-dir", str(run)]
        command = ["resume", str(run)] if (run / "config.yaml").exists() else begin
        silent = subprocess.DEVNULL
        return subprocess.Popen(
            [sys.executable, "-m", "zotune", *command], env=ENVIRONMENT, stdout=silent, stderr=silent
        )

    whole, run = tmp_path / "whole", tmp_path / "killed"
    begun = time.perf_counter()
    assert popen(whole).wait() == 0
    seconds = time.perf_counter() - begun
    kills = 0
    while kills < 10:
        process = popen(run)
        time.sleep(draw.uniform(0.3, 1.0) * seconds)
        process.kill()
        kills += process.wait() == -signal.SIGKILL
    assert popen(run).wait() == 0
    for name in ("journal.zoj", "metrics.jsonl"):
        assert (run / name).read_bytes() == (whole / name).read_bytes()
