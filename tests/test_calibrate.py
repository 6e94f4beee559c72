"""What is measured of a machine, kept, and interpolated."""

from __future__ import annotations

import inspect
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.machines import MACHINE
from torch import nn

from zotune import calibrate
from zotune.calibrate import Machine, between
from zotune.methods import METHODS


def test_measurements_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine is measured once and each method once; a damaged file anew; the cache folder may be read-only."""
    monkeypatch.setenv("ZOTUNE_CACHE", str(tmp_path))
    calls: list[str] = []
    machine = asdict(MACHINE)
    noise = {name: machine.pop(name) for name in ("probe", "update")}
    monkeypatch.setattr(calibrate, "measure", lambda *_: calls.append("machine") or machine)
    monkeypatch.setattr(calibrate, "measure_noise", lambda *asked: calls.append(asked[2]) or noise)
    ask = lambda method, say: calibrate.calibrate(torch.device("cpu"), torch.float32, method, {}, say)  # noqa: E731
    assert ask("mezo", print) == ask("mezo", print) == MACHINE and calls == ["machine", "mezo"]
    assert ask("hizoo", print) == MACHINE and calls == ["machine", "mezo", "hizoo"]
    kept = next(path for path in (tmp_path / "machines").iterdir() if "overhead" in path.read_text())
    assert json.loads(kept.read_text())["overhead"] == 1e-6
    for damaged in ("{", "[]", "3", '{"working": 1}', '{"flops": {"x": 1.0}}'):
        calls.clear()
        kept.write_text(damaged)
        assert ask("mezo", print) == MACHINE and calls == ["machine"]
    monkeypatch.setenv("ZOTUNE_CACHE", str(kept))  # a file: nothing can be kept below it
    said: list[str] = []
    assert ask("mezo", said.append) == MACHINE
    assert "cannot be kept" in said[-1]


@pytest.mark.parametrize("method", ["mezo", "sparse_mezo", "hizoo", "fzoo", "grzo", "lozo", "agzo", "loren"])
def test_each_method_has_its_own_noise_and_update(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a plain product of 1 s, an estimate of 50 s and a step of 70 s: seconds for a weight and a pair of points."""
    monkeypatch.setenv("ZOTUNE_KERNELS", "eager")  # nothing is compiled
    monkeypatch.setattr(calibrate, "_LARGE", (64, 32))
    monkeypatch.setattr(calibrate, "_MATRICES", 2)

    def in_turn(calls: Any, device: torch.device) -> list[float]:
        for call in calls:
            call()
        return [1.0, 50.0, 70.0]

    monkeypatch.setattr(calibrate, "_in_turn", in_turn)
    found = calibrate.measure_noise(torch.device("cpu"), torch.float32, method, {})
    own = METHODS[method if method in ("sparse_mezo", "hizoo", "fzoo", "loren") else "mezo"].build(nn.Linear(64, 32))
    pairs = len(own.estimator.points(0, 0)) / 2
    each = 2 * 64 * 32 * pairs
    assert found == {"probe": pytest.approx((50 - pairs) / each), "update": pytest.approx(20 / each)}


@pytest.mark.parametrize("method", ["mezo", "lozo", "hizoo"])
def test_the_measured_step_writes_the_weights(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a learning rate of 0 there would be no update to measure."""
    monkeypatch.setattr(calibrate, "_LARGE", (64, 32))
    changed: list[bool] = []

    def in_turn(calls: Any, _device: torch.device) -> list[float]:
        weights = inspect.getclosurevars(calls[-1]).nonlocals["opt"].perturber.targets()[0].data
        for call in calls:
            before = weights.clone()
            call()
            changed.append(not torch.equal(weights, before))
        return [1.0, 1.0, 1.0]

    monkeypatch.setattr(calibrate, "_in_turn", in_turn)
    calibrate.measure_noise(torch.device("cpu"), torch.float32, method, {})
    assert changed == [False, False, True]


def test_the_host_is_measured_by_what_a_plan_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The seconds of an evaluation at both sides, over its operations: some tens for each block."""
    evaluated: list[float] = []
    monkeypatch.setattr(calibrate, "_typical", lambda call, _device: evaluated.append(call()) or 1.0)
    operations = 1 / calibrate._overhead(torch.float32)
    assert operations == round(operations) and 10 < operations / calibrate._DEEP < 60
    assert len(evaluated) == 1 and math.isfinite(evaluated[0])
    monkeypatch.setattr(calibrate, "_DEEP", 2 * calibrate._DEEP)
    assert 1 / calibrate._overhead(torch.float32) == pytest.approx(2 * operations, rel=0.1)


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
    """A short measurement of this machine: every rate is positive, it is read back as it was, and nothing is said."""
    monkeypatch.setenv("ZOTUNE_CACHE", str(tmp_path))
    monkeypatch.setenv("ZOTUNE_KERNELS", "eager")  # nothing is compiled
    for name, value in {
        "_BUDGET": 0.0,
        "_LEAST": 1,
        "_WIDTH": 64,
        "_LARGE": (256, 512),
        "_ROWS": (1, 8),
        "_SIZES": (1 << 12, 1 << 16),
    }.items():
        monkeypatch.setattr(calibrate, name, value)
    monkeypatch.setattr(calibrate, "_working", lambda kernels: {"auto": 5, "compiled": 7}[kernels])
    said: list[str] = []
    asked = (torch.device("cpu"), torch.float32, "mezo", {"law": "rademacher"})
    found = calibrate.calibrate(*asked, said.append)
    assert (found.working, found.working_fast, *found.flops, *found.bandwidth) == (5, 7, 1, 8, 1 << 12, 1 << 16)
    assert min(*found.flops.values(), *found.bandwidth.values(), found.overhead) > 0
    assert min(found.probe, found.update) >= 0  # differences of times: none may be left on a busy machine
    assert calibrate.calibrate(*asked, said.append) == found == calibrate.kept(*asked)
    assert said == ["Measuring this machine, once: it may take a minute, and longer where other programs are at work."]
    assert calibrate.kept(torch.device("cpu"), torch.float32, "mezo", {}) is None  # another law is another measurement


def test_memory_of_a_first_step_is_what_its_process_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last number that it prints; nothing is known where it fails or is silent."""
    for program, found in (("print('x'); print(2, 12)", 12), ("print(9); raise SystemExit(1)", 0), ("pass", 0)):
        monkeypatch.setattr(calibrate, "_FIRST_STEP", program)
        assert calibrate._working("auto") == found
