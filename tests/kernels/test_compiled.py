"""The compiled kernels give the bits of the plain ones, whatever the law, dtype, start, length and thread count."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from tests import models
from tests.models import ROWS, Weights, flat, normals, of, train

from zotune import kernels
from zotune import noise as stream
from zotune.noise import LAWS, Key, Law, Purpose
from zotune.store import store_for

CPU = torch.device("cpu")
KEY = Key(20230517, 2**33 + 3, 1)
SIZES = ((0, 1 << 16), (128 * 5, 40_007), (8, 33_000), (3, 32_768 + 129))

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler: nothing can be compiled")


@pytest.fixture(autouse=True)
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compile whatever the size. Importing torch's compiler raises torch's own deprecation warnings."""
    monkeypatch.setenv("ZOTUNE_KERNELS", "compiled")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torch\.")
        assert kernels._compiled() is not None, "a compiler is here, but the kernels did not compile"
        yield


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(("start", "count"), SIZES)
def test_compiled_noise_equals_plain_noise(law: Law, start: int, count: int) -> None:
    """Bit for bit, from aligned and unaligned starts, with a last block that is cut."""
    fast = kernels.noise(law, KEY, "w", start, start + count, CPU, fast=True)
    assert torch.equal(fast, stream.noise(law, KEY, "w", start, start + count))


@pytest.mark.parametrize(("start", "count"), SIZES)
def test_compiled_dither_equals_plain_dither(start: int, count: int) -> None:
    """Bit for bit."""
    key = Key(7, 1, 0, Purpose.DITHER)
    fast = kernels.bits16(key, "w", start, start + count, CPU, fast=True)
    assert fast.dtype == torch.int32
    assert torch.equal(fast, stream.bits16(key, "w", start, start + count))


@pytest.mark.parametrize(("start", "count"), SIZES)
def test_compiled_rounding_equals_that_of_the_store(start: int, count: int) -> None:
    """Bit for bit: normal and subnormal numbers, both zeros, infinities, and what rounds to them."""
    key = Key(7, 1, 0, Purpose.DITHER)
    value = normals(count, 1) * 10.0 ** torch.linspace(-44, 38, count)
    value[:8] = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 3.4e38, -3.4e38, 1e-45])
    fast, plain = torch.zeros(count, dtype=torch.bfloat16), torch.zeros(count, dtype=torch.bfloat16)
    assert kernels.round_into(fast, value, key, "w", start, fast=True)
    store_for(torch.bfloat16).write(plain, value, lambda: stream.bits16(key, "w", start, start + count))
    assert bool(fast[4].isnan()) and bool(plain[4].isnan())
    fast[4] = plain[4] = 0.0  # which of the many bits a NaN has says nothing
    assert torch.equal(fast.view(torch.int16), plain.view(torch.int16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_other_dtypes_are_rounded_by_their_store(dtype: torch.dtype) -> None:
    """Nothing is written, and the caller is told so."""
    w = torch.zeros(1 << 16, dtype=dtype)
    assert not kernels.round_into(w, normals(1 << 16, 1), KEY, "w", 0, fast=True)
    assert not bool(w.any())


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("scales", [[1e-3], [1e-3, -1e-3]])
def test_compiled_sums_equal_plain_sums(law: Law, dtype: torch.dtype, scales: list[float]) -> None:
    """`w + s z` for one and two scales: no fused multiply-add, no other order of rounding."""
    for start, count in SIZES:
        w = normals(count, 1, dtype)
        fast = kernels.add_noise(w, law, KEY, "w", start, scales, fast=True)
        plain = kernels.add_noise(w, law, KEY, "w", start, scales, fast=False)
        assert [part.dtype for part in fast] == [dtype] * len(scales)
        assert all(torch.equal(a, b) for a, b in zip(fast, plain, strict=True))


@pytest.mark.parametrize("law", LAWS)
def test_words_that_are_held_are_read_there(law: Law) -> None:
    """Compiled and plain: the noise of the key whose words lie in the place, whatever key was asked for."""
    place, w = torch.zeros(2, dtype=torch.int64), normals(40_000, 1)
    held, rows = replace(KEY, held=place), torch.tensor([3, 0, 3])
    for step in (0, 2**40):
        other = replace(KEY, step=step)
        place.copy_(torch.tensor(other.words()))
        plain = stream.noise(law, other, "w", 0, 40_000)
        assert torch.equal(stream.noise(law, held, "w", 0, 40_000), plain)
        assert torch.equal(kernels.noise(law, held, "w", 0, 40_000, CPU, fast=True), plain)
        fast = kernels.add_noise(w, law, held, "w", 0, [1e-3], fast=True)
        assert torch.equal(fast[0], kernels.add_noise(w, law, other, "w", 0, [1e-3])[0])
        assert torch.equal(stream.noise_rows(law, held, "w", rows, 77), stream.noise_rows(law, other, "w", rows, 77))


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_compiled_masked_sums_equal_plain_sums(law: Law, dtype: torch.dtype) -> None:
    """What is above the threshold stays to the bit, minus zeros too; what is at it moves."""
    for start, count in SIZES:
        w, reference = normals(count, 1, dtype), normals(count, 2, dtype)
        w[::5] = -0.0
        below = (reference, float(reference[7].abs()))
        fast = kernels.add_noise(w, law, KEY, "w", start, [1e-3, -1e-3], fast=True, below=below)
        plain = kernels.add_noise(w, law, KEY, "w", start, [1e-3, -1e-3], fast=False, below=below)
        z = stream.noise(law, KEY, "w", start, start + count)
        small = reference.abs() <= reference[7].abs()
        assert bool(small[7]) and 0 < int(small.sum()) < count
        for a, b, scale in zip(fast, plain, (1e-3, -1e-3), strict=True):
            assert torch.equal(a.view(torch.uint8), b.view(torch.uint8))
            assert torch.equal(b, torch.where(small, kernels.add_scaled(w, z, scale), w))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("rank", [1, 2, 5])
def test_compiled_low_rank_sums_equal_plain_sums(dtype: torch.dtype, rank: int) -> None:
    """`w + s unit u v'`, term by term in the same order, for one and two scales."""
    rows, columns = 301, 257
    w, u, v = (normals(shape, i, dtype) for i, shape in enumerate(((rows, columns), (rows, rank), (columns, rank))))
    for scales in ([1e-3], [1e-3, -1e-3]):
        fast = kernels.add_low_rank(w, u, v, rank**-0.5, scales, fast=True)
        plain = kernels.add_low_rank(w, u, v, rank**-0.5, scales, fast=False)
        assert [part.dtype for part in fast] == [dtype] * len(scales)
        assert all(torch.equal(a, b) for a, b in zip(fast, plain, strict=True))


def test_the_compiled_path_is_really_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests would prove nothing if the plain twin had answered."""
    monkeypatch.setattr(stream, "noise", None)
    monkeypatch.setattr(stream, "bits16", None)
    assert kernels.noise("gaussian", KEY, "w", 0, 1 << 16, CPU, fast=True).numel() == 1 << 16
    assert kernels.bits16(KEY, "w", 0, 1 << 16, CPU, fast=True).numel() == 1 << 16


def test_one_and_two_threads_give_the_same_bits() -> None:
    """The compiled loops are split among threads; their number changes no bit."""
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(kernels.noise("gaussian", KEY, "w", 0, 200_000, CPU, fast=True))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


@pytest.mark.parametrize("method", models.METHOD_ROWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_run_with_compiled_kernels_ends_with_the_same_weights(
    method: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three steps on tensors large enough for the compiled path: weights and losses equal the plain run's."""
    ends = []
    for mode in ("compiled", "eager"):
        monkeypatch.setenv("ZOTUNE_KERNELS", mode)
        model = Weights(matrix=normals((301, 257), 1, dtype), long=normals(50_001, 2, dtype))
        optimizer = train(method, model, lr=1e-2)
        assert optimizer.perturber.fast == (mode == "compiled")
        losses = [optimizer.step(of(lambda theta: theta.float().square().mean()), ROWS) for _ in range(3)]
        ends.append((losses, flat(model)))
    assert ends[0][0] == ends[1][0]
    assert torch.equal(ends[0][1], ends[1][1])


def test_compiling_works_where_warnings_are_errors() -> None:
    """torch's compiler imports modules that warn; a caller's strict filter must not disable the fast path."""
    code = (
        "import warnings; warnings.simplefilter('error')\n"
        "import logging, sys; logging.basicConfig(stream=sys.stderr)\n"
        "from zotune import kernels\n"
        "sys.exit(kernels._compiled() is None)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
