"""Which path serves a call, what happens when the compiler fails, and the two roundings of the plain path."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from tests.models import normals

from zotune import kernels
from zotune import noise as stream
from zotune.noise import Key

CPU = torch.device("cpu")
KEY = Key(3, 5, 1)
MANY = 1 << 16
WHOLE = stream.noise("gaussian", KEY, "w", 0, MANY)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget, before and after, whether this machine can compile and what was said about it."""
    monkeypatch.setenv("ZOTUNE_KERNELS", "compiled")
    kernels._compiled.cache_clear()
    kernels._say.cache_clear()
    yield
    kernels._compiled.cache_clear()
    kernels._say.cache_clear()


@pytest.fixture(scope="session")
def compiled() -> ModuleType:
    """The compiled twins. Importing torch's compiler raises torch's own deprecation warnings."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torch\.")
        from zotune.kernels import compiled

    return compiled


def fail(*args: object) -> None:
    raise RuntimeError("no compiler here\nand a long trace")


def test_small_scopes_and_eager_mode_compile_nothing(
    fresh: None, compiled: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scope that cannot earn back the seconds of compiling, or ZOTUNE_KERNELS=eager, never starts the compiler."""
    monkeypatch.setattr(compiled, "warm_up", fail)
    monkeypatch.setenv("ZOTUNE_KERNELS", "auto")
    assert not kernels.fast_for(kernels._WORTH_STARTING - 1)
    assert kernels.fast_for(1, torch.device("cuda", 0))
    monkeypatch.setenv("ZOTUNE_KERNELS", "eager")
    assert not kernels.fast_for(1 << 40) and not kernels.fast_for(1 << 40, torch.device("cuda"))
    kernels.noise("gaussian", KEY, "w", 0, MANY, CPU, fast=kernels.fast_for(1 << 40))
    assert kernels._compiled.cache_info().misses == 0


def test_a_failing_compiler_falls_back_with_one_log_line(
    fresh: None, compiled: ModuleType, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """When compiling fails at the start the plain kernels serve every call, and the reason is said once, in a line."""
    monkeypatch.setattr(compiled, "warm_up", fail)
    with caplog.at_level(logging.WARNING, logger="zotune.kernels"):
        drawn = [kernels.noise("gaussian", KEY, "w", 0, MANY, CPU, fast=kernels.fast_for(1 << 30)) for _ in range(2)]
    assert torch.equal(drawn[0], WHOLE) and torch.equal(drawn[1], WHOLE)
    (line,) = caplog.messages
    assert "no compiler here" in line and "\n" not in line


@pytest.mark.parametrize("name", ["noise", "add_noise", "bits16", "round_into"])
def test_a_kernel_that_fails_in_the_middle_of_a_run_falls_back(
    fresh: None, compiled: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A failure while compiling for a new dtype must not leave a step half applied: the plain kernel answers."""
    monkeypatch.setattr(compiled, "warm_up", lambda: None)
    monkeypatch.setattr(compiled, name, fail)
    w = normals(MANY, 1)
    with caplog.at_level(logging.WARNING, logger="zotune.kernels"):
        for _ in range(2):
            if name == "noise":
                found, expected = kernels.noise("gaussian", KEY, "w", 8, MANY, CPU, True), WHOLE[8:]
            elif name == "bits16":
                found, expected = kernels.bits16(KEY, "w", 8, MANY, CPU, True), stream.bits16(KEY, "w", 8, MANY)
            elif name == "round_into":
                found, expected = torch.ones(MANY, dtype=torch.bfloat16), torch.ones(MANY, dtype=torch.bfloat16)
                assert not kernels.round_into(found, w, KEY, "w", 0, True)
            else:
                (found,) = kernels.add_noise(w, "gaussian", KEY, "w", 0, [0.5], True)
                expected = w + 0.5 * WHOLE
            assert torch.equal(found, expected)
    assert len(caplog.messages) == 1


def test_memory_that_runs_out_is_not_hidden(fresh: None, compiled: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain path needs more memory than the compiled one: running out must reach the caller."""

    def exhausted(*args: object) -> None:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(compiled, "warm_up", lambda: None)
    monkeypatch.setattr(compiled, "noise", exhausted)
    with pytest.raises(torch.OutOfMemoryError):
        kernels.noise("gaussian", KEY, "w", 0, MANY, CPU, True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_adding_noise_rounds_the_product_then_the_sum(dtype: torch.dtype) -> None:
    """`w + s z` equals numpy's two roundings in float32 (float64 for doubles), then one to the dtype."""
    w, z, scale = normals(1000, 1).to(dtype), stream.noise("gaussian", KEY, "w", 0, 1000), 1e-3
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    a, b = w.to(wide).numpy(), z.to(wide).numpy()
    expected = torch.from_numpy(a + a.dtype.type(scale) * b).to(dtype)
    assert torch.equal(kernels.add_scaled(w, z, scale), expected)
    assert torch.equal(kernels.add_noise(w, "gaussian", KEY, "w", 0, [scale, 0.0])[0], expected)
