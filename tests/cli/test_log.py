"""`zotune log RUN`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROWS = [
    {"step": 0, "lr": 1e-6, "losses": [0.5, 0.25], "loss": 0.375, "projected_gradient": [125.0]},
    {"step": 1, "lr": [1e-6, 2e-6], "losses": [0.5, 0.5], "loss": 0.5, "projected_gradient": None},
]


def test_log_json_is_a_list(cli: Any, fakes: Any, run_folder: Path) -> None:
    """With --json the rows are one list on one line."""
    fakes.results["log_rows"] = ROWS
    outcome = cli("log", run_folder, "--json")
    assert outcome.code == 0 and json.loads(outcome.stdout) == ROWS and outcome.stdout.count("\n") == 1


def test_log_table(cli: Any, fakes: Any, run_folder: Path) -> None:
    """Without --json a table on stderr."""
    fakes.results["log_rows"] = ROWS
    outcome = cli("log", run_folder)
    lines = [line.split() for line in outcome.stdout.splitlines()]
    assert outcome.stderr == ""
    assert lines == [
        ["step", "lr", "loss", "projected_gradient"],
        ["0", "1e-06", "0.375", "125"],
        ["1", "1e-06,2e-06", "0.5", "-"],
        ["2", "steps"],
    ]
