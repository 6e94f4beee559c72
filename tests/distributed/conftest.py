"""Fixtures of the tests with several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zotune.config import TrainConfig

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}


@pytest.fixture
def crowd(config: Callable[..., TrainConfig], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """`crowd(kind, more, **config)`: what crowd.py found."""

    def run(kind: str, more: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
        file = tmp_path / "config.yaml"
        file.write_text(config(**options).to_yaml())
        order = {"folder": str(tmp_path / "work"), "config": str(file), **(more or {})}
        (tmp_path / "job.json").write_text(json.dumps(order))
        program = [sys.executable, str(Path(__file__).with_name("crowd.py")), kind, str(tmp_path / "job.json")]
        done = subprocess.run(program, capture_output=True, text=True, env=ENVIRONMENT, timeout=500, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    return run
