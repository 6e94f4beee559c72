"""What is measured of a machine, kept, and interpolated."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from tests.machines import MACHINE

from zotune import calibrate
from zotune.calibrate import Machine, between


def test_measurements_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Measured once per machine; a damaged file is measured again; the cache folder may be read-only."""
    monkeypatch.setenv("ZOTUNE_CACHE", str(tmp_path))
    calls: list[int] = []
    monkeypatch.setattr(calibrate, "measure", lambda *_: calls.append(1) or MACHINE)
    ask = lambda: calibrate.calibrate(torch.device("cpu"), torch.float32, "gaussian", lambda _: None)  # noqa: E731
    assert ask() == ask() == MACHINE and len(calls) == 1
    kept = next((tmp_path / "machines").iterdir())
    assert json.loads(kept.read_text())["overhead"] == 1e-6
    for measured, damaged in enumerate(("{", "[]", "3", '{"working": 1}', '{"flops": {"x": 1.0}}'), start=2):
        kept.write_text(damaged)
        assert ask() == MACHINE and len(calls) == measured
    monkeypatch.setenv("ZOTUNE_CACHE", str(kept))  # a file: nothing can be kept below it
    said: list[str] = []
    assert calibrate.calibrate(torch.device("cpu"), torch.float32, "gaussian", said.append) == MACHINE
    assert "cannot be kept" in said[-1]


def test_between_is_log_linear() -> None:
    """Exact at the points, geometric between them, constant beyond."""
    table = {1: 1.0, 100: 100.0}
    assert [between(table, at) for at in (0.5, 1, 10, 100, 1000)] == pytest.approx([1, 1, 10, 100, 100])


def test_an_operation_takes_what_limits_it() -> None:
    """A product of few rows waits for its weights, one of many for arithmetic; any other operation for its bytes."""
    machine = Machine(0, 0, {1: 1e9, 100: 1e11}, {10**3: 1e9, 10**7: 1e10}, 1e-6, 0.0, 0.0)
    assert machine.seconds_of_product(2e6, 10**7, 1) == pytest.approx(1e-6 + 2e6 / 1e9)
    assert machine.seconds_of_product(2e6, 10**7, 100) == pytest.approx(1e-6 + 1e7 / 1e10)
    assert machine.seconds_of_product(2e9, 10**7, 10) == pytest.approx(1e-6 + 2e9 / 1e10)
    assert machine.seconds_of_pass(10**5) == pytest.approx(1e-6 + 1e5 / math.sqrt(1e9 * 1e10))


def test_measured_once_and_said_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A short measurement of this machine: every figure is positive, it is read back as it was, and nothing is said."""
    monkeypatch.setenv("ZOTUNE_CACHE", str(tmp_path))
    monkeypatch.setenv("ZOTUNE_KERNELS", "eager")  # nothing is compiled
    for name, value in {
        "_BUDGET": 0.0,
        "_LEAST": 1,
        "_WIDTH": 64,
        "_LARGE": (512, 512),
        "_ROWS": (1, 8),
        "_SIZES": (1 << 12, 1 << 16),
    }.items():
        monkeypatch.setattr(calibrate, name, value)
    monkeypatch.setattr(calibrate, "_working", lambda kernels: {"auto": 5, "compiled": 7}[kernels])
    said: list[str] = []
    asked = (torch.device("cpu"), torch.float32, "rademacher")
    found = calibrate.calibrate(*asked, said.append)
    assert (found.working, found.working_fast, *found.flops, *found.bandwidth) == (5, 7, 1, 8, 1 << 12, 1 << 16)
    assert min(*found.flops.values(), *found.bandwidth.values(), found.overhead, found.probe) > 0 <= found.update
    assert calibrate.calibrate(*asked, said.append) == found == calibrate.kept(*asked)
    assert said == ["Measuring this machine, once: some seconds."]
    assert calibrate.kept(torch.device("cpu"), torch.float32, "gaussian") is None  # another law is another measurement


def test_memory_of_a_first_step_is_what_its_process_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last number that it prints; nothing is known where it fails or is silent."""
    for program, found in (("print('x'); print(2, 12)", 12), ("print(9); raise SystemExit(1)", 0), ("pass", 0)):
        monkeypatch.setattr(calibrate, "_FIRST_STEP", program)
        assert calibrate._working("auto") == found
