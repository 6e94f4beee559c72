"""A pool on Ray: real processes, one killed in the middle, one that joins late."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from tests.distributed.conftest import ENVIRONMENT

from zotune.config import TrainConfig
from zotune.distributed.ray_crew import RayCrew, _reach
from zotune.errors import ConfigError, UserError
from zotune.train import train
from zotune.watch import Quiet

with_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'zotune[ray]'")


@with_ray
def test_a_killed_worker_is_replaced(config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    """SIGKILL to one of two workers: a third joins late and replays; the run ends with the bytes of one alone."""
    busy = {"steps": 100, "micro_batch_size": 2, "snapshot_every": 20, "eval": None}
    train(config(output_dir=tmp_path / "whole", **busy), Quiet())
    run, file, log = tmp_path / "run", tmp_path / "config.yaml", tmp_path / "log"
    file.write_text(config(output_dir=run, **busy).to_yaml())
    command = [sys.executable, "-m", "zotune", "pool", "--config", str(file), "--workers", "2", "--json"]
    with log.open("w") as said, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, env=ENVIRONMENT) as pool:

        def joined(count: int) -> list[int]:
            while len(found := re.findall(r"worker \d joined \(process (\d+)", log.read_text())) < count:
                assert pool.poll() is None, log.read_text()
                time.sleep(0.01)
            return [int(pid) for pid in found]

        # A worker that is stopped holds a cell, so the run waits for the next one to join, however long that takes.
        os.kill(joined(1)[0], signal.SIGSTOP)
        first, second = joined(2)
        os.kill(first, signal.SIGCONT)
        begun = (run / "journal.zoj").stat().st_size
        while (run / "journal.zoj").stat().st_size < begun + 200:  # a few steps
            time.sleep(0.001)
        os.kill(second, signal.SIGSTOP)
        os.kill(first, signal.SIGKILL)
        joined(3)
        os.kill(second, signal.SIGCONT)
        output, _ = pool.communicate(timeout=200)
    text = log.read_text()
    assert pool.returncode == 0, text
    found = json.loads(output.splitlines()[-1])
    assert (found["workers_joined"], found["workers_lost"]) == (3, 1), text
    assert re.search(r"worker 2 joined \(process \d+ on .*\) after \d+ records, which it replays", text), text
    for name in ("journal.zoj", "metrics.jsonl"):
        assert (run / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_cluster_that_is_not_there() -> None:
    """Nobody listens: one sentence at once, where Ray would try for minutes; its own words are left to it."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}", "127.0.0.1:99999999"):
        with pytest.raises(ConfigError, match=f"no Ray cluster at {address}.*Remedy: `ray start --head` there"):
            _reach(address)
    _reach("auto")
    with socket.create_server(("127.0.0.1", 0)) as server:
        _reach(f"127.0.0.1:{server.getsockname()[1]}")


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray() -> None:
    """The extra is named."""
    with pytest.raises(UserError, match="a pool needs Ray. Remedy: pip install 'zotune"):
        RayCrew(b"", False, 1, 0, None)
