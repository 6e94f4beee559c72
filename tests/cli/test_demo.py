"""`zotune demo`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from zotune.watch import Console


def test_defaults(cli: Any, fakes: Any) -> None:
    """Without flags the demo decides by itself."""
    fakes.results["demo"] = {"accuracy_before": 0.5, "accuracy_after": 0.75}
    outcome = cli("demo", "--json")
    assert outcome.code == 0 and json.loads(outcome.stdout) == fakes.results["demo"]
    name, (watch,), named = fakes.calls[0]
    assert name == "demo" and isinstance(watch, Console)
    assert named == {"seed": 0, "steps": None, "output_dir": None, "threads": None}


def test_flags(cli: Any, fakes: Any, tmp_path: Path) -> None:
    """Every flag reaches the demo."""
    fakes.results["demo"] = {"accuracy_before": 0.5, "accuracy_after": 0.75, "run": tmp_path / "a b"}
    outcome = cli("demo", "--seed", 3, "--steps", 20, "--output-dir", tmp_path, "--threads", 2)
    assert outcome.code == 0 and "accuracy  50.0 % before, 75.0 % after\n" in outcome.stdout
    assert f"`zotune log '{tmp_path / 'a b'}'`" in outcome.stdout
    assert fakes.calls[0][2] == {"seed": 3, "steps": 20, "output_dir": tmp_path, "threads": 2}


def test_more_threads_than_any_machine_has_cores(cli: Any, fakes: Any) -> None:
    """Refused before anything is fetched."""
    outcome = cli("demo", "--threads", 100000)
    assert outcome.code == 2 and "Invalid value for '--threads'" in outcome.stderr and not fakes.calls
