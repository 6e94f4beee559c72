"""`zotune pool`: what reaches the pool. Runs of one are in tests/distributed/test_pool.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import FINISHED

FLAGS = ["--model", "m", "--train", "t.jsonl", "--output-dir"]


def test_flags_reach_the_pool(cli: Any, fakes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One worker without a GPU unless asked otherwise; options and flags of the method make one config."""
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr("zotune.distributed.launch.pooled", lambda *given: calls.append(given) or FINISHED)
    file = tmp_path / "c.yaml"
    file.write_text("model: other\nsteps: 3\n")
    outcome = cli("pool", "--config", file, *FLAGS, tmp_path / "run", "--method", "lozo", "--rank", "2", "--json")
    assert outcome.code == 0 and json.loads(outcome.stdout) == FINISHED
    config, _, workers, gpu_workers, address = calls[0]
    assert (config.model, config.steps, config.method_args) == ("m", 3, {"rank": 2})
    assert config.output_dir == tmp_path / "run" and (workers, gpu_workers, address) == (1, 0, None)
    more = ["--workers", "0", "--gpu-workers", "2", "--address", "auto"]
    outcome = cli("pool", *FLAGS, tmp_path / "run", *more)
    assert (outcome.code, outcome.stderr) == (0, "") and "3 in 0s of training, 6 forwards" in outcome.stdout
    assert calls[1][2:] == (0, 2, "auto")


def test_an_interrupted_pool_goes_on(cli: Any, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C is 130, with the command that continues the run in its folder."""

    def interrupted(*given: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("zotune.distributed.launch.pooled", interrupted)
    outcome = cli("pool", *FLAGS, run)
    assert outcome.code == 130 and f"continue with `zotune resume {run}`" in outcome.stderr


def test_errors(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No workers, fewer than none, no Ray: exit code 2, and no folder is made."""
    monkeypatch.setitem(sys.modules, "ray", None)
    for words, said in (
        (["--workers", "0"], "a pool without workers. Remedy: --workers 2, or --gpu-workers."),
        (["--workers", "-1"], "Invalid value for '--workers'"),
        (["--workers", "1"], "a pool needs Ray. Remedy: pip install 'zotune[ray]'."),
    ):
        outcome = cli("pool", *FLAGS, tmp_path / "run", *words, "--json")
        assert outcome.code == 2 and said in json.loads(outcome.stdout)["error"], outcome
    assert list(tmp_path.iterdir()) == []
