"""`zotune compare` on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

BASE = ["--model", "m", "--train", "t.jsonl", "--eval", "e.jsonl", "--output-dir", "out"]
ROW = {"row": "zero-shot", "accuracy": 0.5, "loss": 0.7, "forwards": 0, "seconds": 1.0, "peak_memory_bytes": 10**9}
RESULT = {"about": {"model": "m"}, "rows": [ROW, {"row": "adamw", "error": "why"}], "folder": "out"}


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The arguments that `compare` was called with."""
    calls: list[Any] = []
    monkeypatch.setattr("zotune.comparison.compare.compare", lambda *given: calls.append(given) or RESULT)
    return calls


def test_rows_and_settings(cli: Any, seen: list[Any], tmp_path: Path) -> None:
    """Flags and a file become one config, rows and their settings; the table is for people, JSON for programs."""
    file = tmp_path / "run.yaml"
    file.write_text("method: lozo\nlr: 1e-5\nscope: norms\n")
    flags = ["--config", file, "--rows", "zero-shot, lozo,adamw-lora", "--set", "adamw-lora.lr=3e-4", "--steps", "9"]
    outcome = cli("compare", *BASE, *flags)
    assert outcome.code == 0, outcome.stderr
    config, rows, _ = seen[0]
    assert (config.method, config.steps, config.output_dir) == ("lozo", 9, Path("out").resolve())
    assert [(row.name, row.config.lr) for row in rows] == [("zero-shot", 1e-5), ("lozo", 1e-5), ("adamw-lora", 3e-4)]
    assert "zero-shot  -      50.0 %" in outcome.stdout and "cannot run: why" in outcome.stdout
    assert "compare.md" in outcome.stdout
    assert json.loads(cli("compare", *BASE, "--json").stdout) == RESULT


def test_default_rows(cli: Any, seen: list[Any]) -> None:
    """What needs no training, the config's method and gradients; with --tune the method measures its rate."""
    assert cli("compare", *BASE, "--tune").code == 0
    assert [row.name for row in seen[0][1]] == [
        "zero-shot",
        "in-context",
        "linear-probe",
        "mezo",
        "adamw",
        "adamw-lora",
    ]
    assert [row.tuned for row in seen[0][1]] == [False, False, False, True, False, False]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rows", "mezzo"], "unknown row 'mezzo'. The nearest is 'mezo'"),
        (["--set", "adamw.eps=1"], "row 'adamw' has no setting 'eps'"),
        (["--steps", "many"], "steps is 'many'"),
    ],
)
def test_errors_come_before_any_work(cli: Any, seen: list[Any], arguments: list[str], said: str) -> None:
    """One line, exit code 2, and nothing is measured."""
    outcome = cli("compare", *BASE, *arguments)
    assert outcome.code == 2 and said in outcome.stderr and outcome.stderr.count("\n") == 1 and not seen
