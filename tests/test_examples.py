"""The scripts of examples/ run as they are, with a tiny model and few steps."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch


@pytest.mark.parametrize(
    ("name", "measured"),
    [
        ("classification", "accuracy"),
        ("generation_f1", "f1"),
        ("hf_trainer", "accuracy"),
        ("quantised_base", "accuracy"),
        ("reward", "reward"),
    ],
)
def test_example_runs(
    name: str,
    measured: str,
    repository: Path,
    tiny: Callable[[str], Path],
    movies: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The last line is the result, with the score before and after."""
    if name == "quantised_base" and not (find_spec("bitsandbytes") and find_spec("accelerate")):
        pytest.skip("bitsandbytes is not installed: pip install 'zotune[quant]'")
    shutil.copy(movies / "train.jsonl", tmp_path)
    shutil.copy(movies / "eval.jsonl", tmp_path / "test.jsonl")
    words = ["--steps", "2", "--threads", "1", "--model", str(tiny("deep")), "--data", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [name, *words, "--output-dir", str(tmp_path / "out")])
    monkeypatch.syspath_prepend(repository / "examples")  # as python does for a script: they share sentences.py
    threads = torch.get_num_threads()
    try:
        runpy.run_path(str(repository / "examples" / f"{name}.py"), run_name="__main__")
    finally:
        torch.set_num_threads(threads)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["steps"] == 2 and 0 <= found[f"{measured}_before"] <= 1 and 0 <= found[f"{measured}_after"] <= 1


def test_plain_pytorch_learns(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A quarter of its steps already moves the accuracy away from a guess; the journal rebuilds the model."""
    monkeypatch.setattr(sys, "argv", ["plain_pytorch", "--steps", "200", "--output-dir", str(tmp_path)])
    threads = torch.get_num_threads()
    try:
        runpy.run_path(str(repository / "examples" / "plain_pytorch.py"), run_name="__main__")
    finally:
        torch.set_num_threads(threads)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["rebuilt_alike"] and found["steps"] == 200
    assert found["accuracy_after"] > found["accuracy_before"] + 0.1
