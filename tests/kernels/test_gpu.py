"""The Triton kernels give the bits of the plain twins, whatever the law, dtype, start, length and number of scales.

Without a CUDA device they run in Triton's interpreter. With one they run on it, marked `gpu`; there,
`TRITON_INTERPRET=1` chooses the interpreter again.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tests.models import given, normals, train
from tests.philox import KNOWN, words_of
from torch import Tensor

from zotune import kernels
from zotune import noise as stream
from zotune.noise import LAWS, Key, Law, Purpose
from zotune.store import store_for

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" or not torch.cuda.is_available()
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")

with pytest.MonkeyPatch.context() as patch:
    if INTERPRETED:
        # Read when a kernel is decorated, as Triton's own and ours are here, and again when it is launched.
        patch.setenv("TRITON_INTERPRET", "1")
    triton = pytest.importorskip("triton", reason="no Triton: its kernels cannot be tested")
    tl, gpu = importlib.import_module("triton.language"), importlib.import_module("zotune.kernels.gpu")

    @triton.jit
    def round_kernel(out, value, bits, COUNT: tl.constexpr):
        at = tl.arange(0, COUNT)
        wide, dither = tl.load(value + at), tl.load(bits + at).to(tl.uint32)
        if out.dtype.element_ty == tl.bfloat16:
            tl.store(out + at, gpu._round_bfloat16(wide, dither))
        else:
            tl.store(out + at, gpu._round_float16(wide, dither))


# In the interpreter numpy says where a float16 becomes infinite, as it must, or a NaN is met.
_QUIET = "ignore:(overflow|invalid value) encountered:RuntimeWarning"
pytestmark = pytest.mark.filterwarnings(_QUIET) if INTERPRETED else pytest.mark.gpu

KEY, DITHER = Key(20230517, 2**33 + 3, 1), Key(20230517, 2**33 + 3, 0, Purpose.DITHER)
# (start, count): one tile and a part of one, whole tiles, unaligned, the last block that a 32-bit number can name.
SLICES = ((0, 5003), (3, 16_384), (128 * 5 + 7, 9), (2**35 - 11, 8200), (128 * 2**32 - 77, 4300))
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

laws = pytest.mark.parametrize("law", LAWS)
dtypes = pytest.mark.parametrize("dtype", DTYPES)


@pytest.fixture(autouse=True)
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter cuts float32 off at bfloat16 and loses its subnormal numbers: torch converts instead."""
    if not INTERPRETED:
        return
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    from triton.runtime import interpreter

    cast = interpreter.InterpreterBuilder.cast_impl

    def rounding(self: Any, src: Any, dst_type: Any) -> Any:
        data, pair = np.ascontiguousarray(src.data), (src.dtype.scalar, dst_type.scalar)
        if pair == (tl.float32, tl.bfloat16):
            data = torch.from_numpy(data).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
        elif pair == (tl.bfloat16, tl.float32):
            data = torch.from_numpy(data.view(np.int16)).view(torch.bfloat16).to(torch.float32).numpy()
        else:
            return cast(self, src, dst_type)
        return interpreter.TensorHandle(data, dst_type.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "cast_impl", rounding)


def bits_of(values: Tensor) -> Tensor:
    return values.cpu().contiguous().view(torch.int32 if values.dtype.itemsize == 4 else torch.int16)


def same(fast: Tensor, plain: Tensor) -> bool:
    """Equal in dtype, shape and every bit: a zero's sign counts."""
    return fast.dtype == plain.dtype and torch.equal(bits_of(fast), bits_of(plain))


def weights(count: int, dtype: torch.dtype) -> Tensor:
    """Normal numbers of many sizes, then zeros, subnormal numbers, the borders of float16, and the largest."""
    info = torch.finfo(dtype)
    rare = [0.0, -0.0, info.tiny, -info.tiny / 2, info.smallest_normal * 0.75, 2.0**-14, -(2.0**-14), 6.1e-5, 1e-6]
    rare += [info.max, -info.max, torch.inf, -torch.inf, 1.0, 0.5, -0.25]
    scale = 10.0 ** torch.linspace(-9, 1, count)
    return torch.cat((torch.tensor(rare), normals(count, 1) * scale))[:count].to(dtype)


def as_words(counter: str, key: str) -> list[int]:
    return [word - (word >> 31 << 32) for word in words_of(f"{counter} {key}")]


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN)
def test_philox_gives_the_published_vectors(counter: str, key: str, output: str) -> None:
    """The known answers of Random123, read as the half-words of the first block that a kernel draws."""
    out = torch.empty(4096, dtype=torch.int32, device=DEVICE)
    gpu._bits_kernel[(1,)](out, 4096, *as_words(counter, key), **gpu._UNFUSED)
    halves = out[:8].tolist()
    assert [low | high << 16 for low, high in zip(halves[::2], halves[1::2], strict=True)] == words_of(output)


@laws
@pytest.mark.parametrize(("start", "count"), SLICES)
def test_noise_equals_plain_noise(law: Law, start: int, count: int) -> None:
    """From any start, also where the block number outgrows 32 bits in the middle of a slice."""
    fast = gpu.noise(law, KEY, "w", start, start + count, DEVICE)
    assert same(fast, stream.noise(law, KEY, "w", start, start + count))


@laws
@dtypes
@pytest.mark.parametrize("sizes", [[("a", 1)], [("a", 5), ("bb", 128), ("c", 0), ("a", 3000)], [("x", 9000)]])
def test_many_draws_at_once_equal_plain_ones(law: Law, dtype: torch.dtype, sizes: list[tuple[str, int]]) -> None:
    """One launch for parameters of all sizes, an empty one included, in the dtype asked for; their dither too."""
    fast = gpu.noise_many(law, KEY, sizes, DEVICE, dtype)
    plain = stream.noise_many(law, KEY, sizes, dtype=dtype)
    assert all(same(a, b) for a, b in zip(fast, plain, strict=True))
    bits = gpu.bits16_many(DITHER, sizes, DEVICE)
    assert all(same(a, b) for a, b in zip(bits, stream.bits16_many(DITHER, sizes), strict=True))


@laws
@dtypes
def test_words_that_are_held_are_read_when_a_kernel_runs(law: Law, dtype: torch.dtype) -> None:
    """Noise and sums of the key whose words lie in the place, whatever key was asked for: all 32 bits of both words."""
    place, w = torch.zeros(2, dtype=torch.int64, device=DEVICE), weights(5003, dtype)
    held = replace(KEY, held=place)
    for step in (0, 5, 2**40):
        other = replace(KEY, step=step)
        place.copy_(torch.tensor(other.words()))
        assert same(gpu.noise(law, held, "w", 128, 9000, DEVICE), stream.noise(law, other, "w", 128, 9000))
        fast = gpu.add_noise(w.to(DEVICE), law, held, "w", 128, [1e-3, -1e-3])
        plain = kernels.add_noise(w, law, other, "w", 128, [1e-3, -1e-3])
        assert all(same(a, b) for a, b in zip(fast, plain, strict=True))


@pytest.mark.parametrize(("start", "count"), SLICES)
def test_dither_equals_plain_dither(start: int, count: int) -> None:
    """The same for the sixteen bits."""
    assert same(gpu.bits16(DITHER, "w", start, start + count, DEVICE), stream.bits16(DITHER, "w", start, start + count))


@laws
@dtypes
@pytest.mark.parametrize("scales", [[1e-3], [1e-3, -1e-3], [0.1, 0.0, 1e-38, -3e4, 1]])
def test_sums_equal_plain_sums(law: Law, dtype: torch.dtype, scales: list[float]) -> None:
    """Two roundings in float32 and one to the dtype, for one scale and for more; tiles whole and cut."""
    for start, count in ((0, 8192), (128 * 5, 9001), (128 * 2**32 - 128, 300)):
        w = weights(count, dtype)
        fast = gpu.add_noise(w.to(DEVICE), law, KEY, "w", start, scales)
        plain = kernels.add_noise(w, law, KEY, "w", start, scales)
        assert all(same(a, b) for a, b in zip(fast, plain, strict=True))


@laws
@dtypes
def test_only_elements_below_the_threshold_move(law: Law, dtype: torch.dtype) -> None:
    """|reference| <= h in float32, h itself included; the others keep every bit. A NaN is below nothing."""
    w = weights(9001, dtype)
    for reference in (normals(w.numel(), 2, dtype), normals(w.numel(), 2, torch.bfloat16), w):
        reference[17] = torch.nan
        for h in (float(reference.abs()[40]), -1.0):
            moved = kernels.add_noise(w, law, KEY, "w", 128, [1e-2, -1e-2])
            small = reference.to(torch.float32).abs() <= h
            fast = gpu.add_noise(w.to(DEVICE), law, KEY, "w", 128, [1e-2, -1e-2], (reference.to(DEVICE), h))
            finite = ~w.isnan()
            for a, b in zip(fast, moved, strict=True):
                assert same(a.cpu()[finite], torch.where(small, b, w)[finite])


@laws
@dtypes
@pytest.mark.parametrize("scale", [1e-6, -0.3])
def test_folding_equals_adding_and_storing(law: Law, dtype: torch.dtype, scale: float) -> None:
    """In place, and only there: the fused update is the wide sum, written by the store with the stream's dither."""
    for start, count in ((0, 8192), (128 * 5, 9001), (128 * 2**32 - 128, 300)):
        around = weights(count + 64, dtype)
        w = around[32:-32].clone()
        (value,) = kernels.add_noise(w.to(torch.float32), law, KEY, "w", start, [scale])
        store_for(dtype).write(w, value, lambda a=start, b=start + count: stream.bits16(DITHER, "w", a, b))  # type: ignore[misc]
        whole = around.to(DEVICE, copy=True)
        gpu.fold(whole[32:-32], law, KEY, "w", start, scale, DITHER)
        assert same(whole[32:-32], w)
        assert same(whole[:32], around[:32]) and same(whole[-32:], around[-32:])


@dtypes
def test_a_step_is_one_pass(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """MeZO's update through the fused kernel ends with the bits of the plain path."""
    ends, calls = [], []
    inner = gpu.fold
    monkeypatch.setattr(gpu, "fold", lambda *args: calls.append(args[3]) or inner(*args))
    for module in (None, gpu):
        monkeypatch.setattr(kernels, "_compiled", lambda _, module=module: module)
        monkeypatch.setattr(kernels, "_WORTH_COMPILING", 1)
        monkeypatch.setenv("ZOTUNE_KERNELS", "compiled")
        torch.manual_seed(3)
        model = torch.nn.Linear(160, 160).to(DEVICE, dtype)
        optimizer = train("mezo", model, coverage=False)
        given(optimizer, 0.05)
        ends.append(model.weight.detach())
    assert calls == ["weight"] and same(ends[1], ends[0].cpu())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_the_stores_for_every_kind_of_number(dtype: torch.dtype) -> None:
    """Any 32 bits, with any dither; but a NaN stays one, where dither could carry its bits into an ordinary number."""
    words = torch.randint(-(2**31), 2**31, (1 << 15,), generator=torch.Generator().manual_seed(1), dtype=torch.int64)
    words[:4] = torch.tensor([2**31 - 1, -1, 2**31 - 2**16, 0x7F800001])
    value = words.to(torch.int32).view(torch.float32)
    value[1 << 14 :] = weights(1 << 14, torch.float32)  # the sizes that float16 can hold, subnormal numbers among them
    bits = stream.bits16(DITHER, "w", 0, value.numel())
    out = torch.empty(value.numel(), dtype=dtype, device=DEVICE)
    round_kernel[(1,)](out, value.to(DEVICE), bits.to(DEVICE), value.numel(), **gpu._UNFUSED)
    plain = torch.empty_like(value, dtype=dtype)
    store_for(dtype).write(plain, value, lambda: bits)
    numbers = ~value.isnan()
    assert same(out.cpu()[numbers], plain[numbers])
    assert out.cpu()[~numbers].isnan().all()


@dtypes
@pytest.mark.parametrize(("rows", "columns", "rank"), [(1, 1, 1), (5, 1030, 2), (9, 257, 5), (23, 7, 1)])
def test_low_rank_sums_equal_plain_sums(dtype: torch.dtype, rows: int, columns: int, rank: int) -> None:
    """`w + s unit u v'`, term by term in the same order; factors in the dtype of the weights, or narrower."""
    for factors in {dtype, torch.bfloat16}:
        w = weights(rows * columns, dtype).view(rows, columns)
        u, v = normals((rows, rank), 1, factors), normals((columns, rank), 2, factors)
        for scales in ([1e-3], [0.1, -0.1, 1]):
            fast = gpu.add_low_rank(w.to(DEVICE), u.to(DEVICE), v.to(DEVICE), rank**-0.5, scales)
            plain = kernels.add_low_rank(w, u, v, rank**-0.5, scales)
            assert all(same(a, b) for a, b in zip(fast, plain, strict=True))


def test_an_empty_slice_is_empty() -> None:
    """No program runs, nothing is read."""
    assert gpu.noise("gaussian", KEY, "w", 8, 8, DEVICE).shape == (0,)
    assert gpu.add_noise(torch.empty(0, device=DEVICE), "rademacher", KEY, "w", 0, [1.0])[0].shape == (0,)


def test_what_would_go_wrong_is_refused() -> None:
    """A start inside a block, and writing into weights that are not in one piece."""
    w = torch.zeros(64, device=DEVICE)
    with pytest.raises(ValueError, match="multiple of 128"):
        gpu.add_noise(w, "rademacher", KEY, "w", 8, [1.0])
    with pytest.raises(ValueError, match="multiple of 8"):
        gpu.fold(w, "gaussian", KEY, "w", 4, 1.0, DITHER)
    with pytest.raises(ValueError, match="contiguous"):
        gpu.fold(w[::2], "gaussian", KEY, "w", 0, 1.0, DITHER)


def test_the_warm_up_finds_a_wrong_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """It passes on these kernels, and raises where one table entry is off by its last bit."""
    gpu.warm_up(DEVICE)
    table = stream.quantile_table(DEVICE).clone()
    at = int(stream.half_words(stream.words(Key(0, 0), "warm", torch.tensor([3])))[0, 0]) & 0xFFF
    table[at] += 1 / 4096
    monkeypatch.setattr(gpu, "_table", lambda law, device: table if law == "gaussian" else None)
    with pytest.raises(ArithmeticError, match="gaussian"):
        gpu.warm_up(DEVICE)


def test_zotune_does_not_import_triton() -> None:
    """The optimizer runs where Triton is not installed."""
    code = "import sys, zotune.kernels; sys.exit('triton' in sys.modules or 'zotune.kernels.gpu' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


# Compiled for one GPU without having it: what the options of every launch make of a product and a sum.
COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from zotune.kernels import gpu

signature = {name: "i32" for name in gpu._fold_kernel.arg_names}
signature |= {"w": "*bf16", "scale": "fp32", "table": "*fp32", "TILE": "constexpr"}
source = ASTSource(fn=gpu._fold_kernel, signature=signature, constexprs={"TILE": 8192})
for options in (gpu._UNFUSED, {"enable_fp_fusion": True}):
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]
    print("fma." in ptx, "ftz" in ptx, "cvt.rn.bf16" in ptx, "mul.wide.u32" in ptx)
"""


def test_compiled_code_has_no_fused_multiply_add(tmp_path: Any) -> None:
    """With the launch options no fma and nothing flushed to zero; without them there would be an fma."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["False False True True", "True False True True"]
