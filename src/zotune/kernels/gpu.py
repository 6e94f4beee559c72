# Kernels are compiled from source, not called: Triton ships no types for them.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""The noise functions as Triton kernels: each the bits of its plain twin, each weight read once and written once.

One program serves one tile of consecutive elements: it draws the tile's Philox blocks and spreads each over its 8 or
128 elements, so noise never crosses memory. `import zotune` does not need Triton; this module does.

What keeps the bits:

* every launch forbids fused multiply-adds (`_UNFUSED`): the product and the sum are two roundings;
* block numbers have 64 bits: a carry out of the low counter word reaches the high one;
* Gaussian values come from the one integer table;
* a cast to bfloat16 or float16 rounds to nearest, ties to even. Triton's interpreter cuts bfloat16 off instead.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from zotune import noise as plain
from zotune.noise import Key, Law, Purpose
from zotune.store import store_for

# Elements and warps of a program: 32 elements a thread, so that several 16-byte loads are under way at once. Gaussian
# tiles are larger, because each program first copies the 16 KB table into shared memory.
_TILE: dict[Law, tuple[int, int]] = {"rademacher": (4096, 4), "gaussian": (8192, 8)}
_ROWS, _COLUMNS = 4, 1024  # the tile of a low-rank sum: a thread's 8 columns of `v` serve all four rows
# They change with every call: specialised on their values (1, or a multiple of 16), kernels would be compiled again.
_WORDS = ["first0", "first1", "name0", "name1", "key0", "key1", "dither_first0", "dither_first1", "dither0", "dither1"]
_UNFUSED: dict[str, Any] = {"enable_fp_fusion": False}


@triton.jit
def philox(c0, c1, c2, c3, k0, k1):
    """Ten rounds of Philox4x32 on uint32 words (tensors or scalars); returns four tensors."""
    for _ in tl.static_range(10):
        # One 64-bit product is one wide multiply; `umulhi` and a low product would be two instructions.
        p0, p1 = c0.to(tl.uint64) * 0xD2511F53, c2.to(tl.uint64) * 0xCD9E8D57
        c0, c2 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0, (p0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c1, c3 = p1.to(tl.uint32), p0.to(tl.uint32)
        k0 = tl.add(k0, 0x9E3779B9, sanitize_overflow=False)
        k1 = tl.add(k1, 0xBB67AE85, sanitize_overflow=False)
    return c0, c1, c2, c3


@triton.jit
def _draw(tile, BLOCKS: tl.constexpr, first0, first1, name0, name1, key0, key1):
    """The words of the tile's blocks in element order: (4 * BLOCKS,) uint32."""
    index = (tile * BLOCKS + tl.arange(0, BLOCKS)).to(tl.uint32)
    low = tl.add(first0.to(tl.uint32, bitcast=True), index, sanitize_overflow=False)
    high = first1.to(tl.uint32, bitcast=True) + (low < index).to(tl.uint32)
    a, b, c, d = philox(
        low,
        high,
        name0.to(tl.uint32, bitcast=True),
        name1.to(tl.uint32, bitcast=True),
        key0.to(tl.uint32, bitcast=True),
        key1.to(tl.uint32, bitcast=True),
    )
    return tl.interleave(tl.interleave(a, c), tl.interleave(b, d))


@triton.jit
def _halves(words):
    """From (n,) words to (2 * n,) half-words in 0..65535, low half first. Both halves stay with the word's thread."""
    return tl.interleave(words & 0xFFFF, words >> 16)


@triton.jit
def _draw_many(tile, BLOCKS: tl.constexpr, blocks, names, n, key0, key1):
    """As `_draw`, of blocks whose numbers and names are listed: `blocks` (n,), `names` (n, 2), int64."""
    index = tile * BLOCKS + tl.arange(0, BLOCKS)
    here = index < n
    block = tl.load(blocks + index, here, 0)
    a, b, c, d = philox(
        block.to(tl.uint32),
        (block >> 32).to(tl.uint32),
        tl.load(names + 2 * index, here, 0).to(tl.uint32),
        tl.load(names + 2 * index + 1, here, 0).to(tl.uint32),
        key0.to(tl.uint32, bitcast=True),
        key1.to(tl.uint32, bitcast=True),
    )
    return tl.interleave(tl.interleave(a, c), tl.interleave(b, d))


@triton.jit
def _z(table, tile, TILE: tl.constexpr, first0, first1, name0, name1, key0, key1):
    """The tile's noise, (TILE,) float32: through `table`, or signs where there is none."""
    PER: tl.constexpr = 128 if table is None else 8
    return _expand(table, _draw(tile, TILE // PER, first0, first1, name0, name1, key0, key1), TILE)


@triton.jit
def _expand(table, words, TILE: tl.constexpr):
    if table is None:
        # A clear bit becomes the sign bit of 1.0: two integer operations, no conversion.
        shifts = 31 - tl.arange(0, 32).to(tl.uint32)
        signs = ((words ^ 0xFFFFFFFF)[:, None] << shifts[None, :]) & 0x80000000
        return tl.reshape(signs | 0x3F800000, (TILE,)).to(tl.float32, bitcast=True)
    else:
        # Gathered from shared memory, where 4096 entries meet few bank conflicts; from global memory, each of a warp's
        # 32 lanes would ask for a cache line of its own.
        entries = tl.load(table + tl.arange(0, 4096))
        return tl.gather(entries, (_halves(words) & 0xFFF).to(tl.int32), 0)


@triton.jit
def _round_bfloat16(value, bits):
    """As `zotune.store.round_bfloat16`, except that no NaN can be carried into another number."""
    cut = tl.add(value.to(tl.uint32, bitcast=True), bits, sanitize_overflow=False) & 0xFFFF0000
    return tl.where(value == value, cut.to(tl.float32, bitcast=True), value).to(tl.bfloat16)


@triton.jit
def _round_float16(value, bits):
    """As `zotune.store.round_float16`, except that no NaN can be carried into another number."""
    bits = bits & 0x1FFF
    word = value.to(tl.uint32, bitcast=True)
    normal = (tl.add(word, bits, sanitize_overflow=False) & 0xFFFFE000).to(tl.float32, bitcast=True)
    units = tl.abs(value) * 16777216.0
    down = tl.floor(units)
    up = bits.to(tl.int32).to(tl.float32) < (units - down) * 8192.0
    size = (down + up.to(tl.float32)) * 5.9604644775390625e-08
    tiny = (size.to(tl.uint32, bitcast=True) | (word & 0x80000000)).to(tl.float32, bitcast=True)
    rounded = tl.where(tl.abs(value) < 6.103515625e-05, tiny, normal)
    return tl.where(value == value, rounded, value).to(tl.float16)


@triton.jit
def _key(held, key0, key1):
    """The key's words: where they are held, or those given."""
    if held is not None:
        key0, key1 = tl.load(held).to(tl.int32), tl.load(held + 1).to(tl.int32)
    return key0, key1


@triton.jit(do_not_specialize=_WORDS)
def _noise_kernel(out, table, TILE: tl.constexpr, held, first0, first1, name0, name1, key0, key1):
    tile = tl.program_id(0)
    key0, key1 = _key(held, key0, key1)
    z = _z(table, tile, TILE, first0, first1, name0, name1, key0, key1)
    tl.store(out + tile.to(tl.int64) * TILE + tl.arange(0, TILE), z)


@triton.jit(do_not_specialize=["n", "key0", "key1"])
def _noise_many_kernel(out, table, TILE: tl.constexpr, blocks, names, n, key0, key1):
    tile = tl.program_id(0)
    PER: tl.constexpr = 128 if table is None else 8
    words = _draw_many(tile, TILE // PER, blocks, names, n, key0, key1)
    at = tile.to(tl.int64) * TILE + tl.arange(0, TILE)
    tl.store(out + at, _expand(table, words, TILE).to(out.dtype.element_ty), at < n.to(tl.int64) * PER)


@triton.jit(do_not_specialize=["n", "key0", "key1"])
def _bits_many_kernel(out, TILE: tl.constexpr, blocks, names, n, key0, key1):
    tile = tl.program_id(0)
    halves = _halves(_draw_many(tile, TILE // 8, blocks, names, n, key0, key1))
    at = tile.to(tl.int64) * TILE + tl.arange(0, TILE)
    tl.store(out + at, halves.to(tl.int32), at < n.to(tl.int64) * 8)


@triton.jit(do_not_specialize=_WORDS)
def _bits_kernel(out, TILE: tl.constexpr, first0, first1, name0, name1, key0, key1):
    tile = tl.program_id(0)
    halves = _halves(_draw(tile, TILE // 8, first0, first1, name0, name1, key0, key1))
    tl.store(out + tile.to(tl.int64) * TILE + tl.arange(0, TILE), halves.to(tl.int32))


@triton.jit(do_not_specialize=_WORDS)
def _add_noise_kernel(
    w, outs, scales, reference, h, table, n, TILE: tl.constexpr, held, first0, first1, name0, name1, key0, key1
):
    tile = tl.program_id(0)
    key0, key1 = _key(held, key0, key1)
    at = tile.to(tl.int64) * TILE + tl.arange(0, TILE)
    here = at < n
    old = tl.load(w + at, here, 0)
    wide = old.to(tl.float32)
    z = _z(table, tile, TILE, first0, first1, name0, name1, key0, key1)
    if reference is not None:
        size = tl.load(reference + at, here, 0).to(tl.float32)
        small = (size <= h) & (size >= -h)
        # -0.0, which changes no number that it is added to; spelled in bits, since older Triton drops its sign.
        nothing = tl.full((TILE,), 0x80000000, tl.uint32).to(tl.float32, bitcast=True)
    for i in tl.static_range(len(scales)):
        move = scales[i] * z
        if reference is not None:
            move = tl.where(small, move, nothing)
        tl.store(outs[i] + at, (wide + move).to(old.dtype), here)


@triton.jit(do_not_specialize=_WORDS)
def _fold_kernel(
    w, scale, table, n, TILE: tl.constexpr, first0, first1, name0, name1, key0, key1,
    dither_first0, dither_first1, dither0, dither1,
):  # fmt: skip
    tile = tl.program_id(0)
    at = tile.to(tl.int64) * TILE + tl.arange(0, TILE)
    here = at < n
    old = tl.load(w + at, here, 0)
    new = old.to(tl.float32) + scale * _z(table, tile, TILE, first0, first1, name0, name1, key0, key1)
    if old.dtype != tl.float32:
        words = _draw(tile, TILE // 8, dither_first0, dither_first1, name0, name1, dither0, dither1)
        if old.dtype == tl.bfloat16:
            new = _round_bfloat16(new, _halves(words))
        else:
            new = _round_float16(new, _halves(words))
    tl.store(w + at, new, here)


@triton.jit
def _add_low_rank_kernel(
    w, outs, scales, u, v, unit, rows, columns, RANK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    across = tl.cdiv(columns, COLUMNS)
    row = (tl.program_id(0) // across) * ROWS + tl.arange(0, ROWS)[:, None]
    column = (tl.program_id(0) % across) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    at = row.to(tl.int64) * columns + column
    here = (row < rows) & (column < columns)
    old = tl.load(w + at, here, 0)
    # Term by term, as the plain twin: a matrix product would sum in another order.
    z = tl.load(u + row, row < rows, 0).to(tl.float32) * tl.load(v + column, column < columns, 0).to(tl.float32)
    for _ in range(1, RANK):
        u += rows
        v += columns
        z += tl.load(u + row, row < rows, 0).to(tl.float32) * tl.load(v + column, column < columns, 0).to(tl.float32)
    z = z * unit
    wide = old.to(tl.float32)
    for i in tl.static_range(len(scales)):
        tl.store(outs[i] + at, (wide + scales[i] * z).to(old.dtype), here)


def _stream(key: Key, name: str, first: int) -> tuple[int, ...]:
    """Block number, name and key as six words; signed, so that their type does not change with their value."""
    words = (first & 0xFFFFFFFF, first >> 32, *plain.name_words(name), *key.words())
    return tuple(ctypes.c_int32(word).value for word in words)


def _table(law: Law, device: torch.device) -> Tensor | None:
    return plain.quantile_table(device) if law == "gaussian" else None


def _first(law: Law, start: int) -> int:
    first, rest = divmod(start, plain.per_block(law))
    if rest:
        raise ValueError(f"start must be a multiple of {plain.per_block(law)} for {law} noise, got {start}")
    return first


def noise(law: Law, key: Key, name: str, start: int, stop: int, device: torch.device | str) -> Tensor:
    """As `zotune.noise.noise`."""
    (tile, warps), (first, skip) = _TILE[law], divmod(start, plain.per_block(law))
    tiles = triton.cdiv(skip + stop - start, tile)
    # The last tile is drawn whole and cut afterwards: without masks every store is 16 bytes wide.
    out = torch.empty(tiles * tile, dtype=torch.float32, device=device)
    with torch.cuda.device_of(out):
        _noise_kernel[(tiles,)](
            out, _table(law, out.device), tile, key.held, *_stream(key, name, first), num_warps=warps, **_UNFUSED
        )
    return out[skip : skip + stop - start]


def bits16(key: Key, name: str, start: int, stop: int, device: torch.device | str) -> Tensor:
    """As `zotune.noise.bits16`."""
    (tile, warps), (first, skip) = _TILE["rademacher"], divmod(start, 8)
    tiles = triton.cdiv(skip + stop - start, tile)
    out = torch.empty(tiles * tile, dtype=torch.int32, device=device)
    with torch.cuda.device_of(out):
        _bits_kernel[(tiles,)](out, tile, *_stream(key, name, first), num_warps=warps, **_UNFUSED)
    return out[skip : skip + stop - start]


def noise_many(
    law: Law, key: Key, sizes: Sequence[tuple[str, int]], device: torch.device | str, dtype: torch.dtype
) -> list[Tensor]:
    """As `zotune.noise.noise_many`."""
    (tile, warps), per = _TILE[law], plain.per_block(law)
    blocks, names = plain.layout(tuple(sizes), per, torch.device(device))
    out = torch.empty(len(blocks), per, dtype=dtype, device=device)
    with torch.cuda.device_of(out):
        _noise_many_kernel[(triton.cdiv(out.numel(), tile),)](
            out, _table(law, out.device), tile, blocks, names, len(blocks), *_stream(key, "", 0)[4:],
            num_warps=warps, **_UNFUSED,
        )  # fmt: skip
    return plain.parts(out, sizes)


def bits16_many(key: Key, sizes: Sequence[tuple[str, int]], device: torch.device | str) -> list[Tensor]:
    """As `zotune.noise.bits16_many`."""
    tile, warps = _TILE["rademacher"]
    blocks, names = plain.layout(tuple(sizes), 8, torch.device(device))
    out = torch.empty(len(blocks), 8, dtype=torch.int32, device=device)
    with torch.cuda.device_of(out):
        _bits_many_kernel[(triton.cdiv(out.numel(), tile),)](
            out, tile, blocks, names, len(blocks), *_stream(key, "", 0)[4:], num_warps=warps, **_UNFUSED
        )
    return plain.parts(out, sizes)


def add_noise(
    w: Tensor,
    law: Law,
    key: Key,
    name: str,
    start: int,
    scales: Sequence[float],
    below: tuple[Tensor, float] | None = None,
) -> list[Tensor]:
    """As `zotune.kernels.add_noise`; `start` must be a multiple of the law's block. `w` (n,) is not float64.

    With `below = (reference, h)` only elements whose |reference| <= h move; `reference` (n,), compared in float32.
    """
    tile, warps = _TILE[law]
    reference, h = (None, 0.0) if below is None else (below[0].contiguous(), float(below[1]))
    first, w = _first(law, start), w.contiguous()
    outs = tuple(torch.empty_like(w) for _ in scales)
    with torch.cuda.device_of(w):
        _add_noise_kernel[(triton.cdiv(w.numel(), tile),)](
            w, outs, tuple(float(scale) for scale in scales), reference, h, _table(law, w.device), w.numel(), tile,
            key.held, *_stream(key, name, first), num_warps=warps, **_UNFUSED,
        )  # fmt: skip
    return list(outs)


def fold(w: Tensor, law: Law, key: Key, name: str, start: int, scale: float, dither_key: Key) -> Tensor:
    """`w + scale * z` into `w` (n,), in place and in one pass, stochastically rounded where it has 16 bits; gives `w`.

    Equal to `zotune.kernels.add_noise` on `w` in float32, written by the store of `w.dtype` with the dither of
    `dither_key`. `start` must be a multiple of the law's block. Raises ValueError for a `w` that is not contiguous.
    """
    if not w.is_contiguous():
        raise ValueError("fold writes in place: w must be contiguous")
    tile, warps = _TILE[law]
    words = _stream(key, name, _first(law, start))
    dither = _stream(dither_key, name, start // 8)
    with torch.cuda.device_of(w):
        _fold_kernel[(triton.cdiv(w.numel(), tile),)](
            w, float(scale), _table(law, w.device), w.numel(), tile, *words, *dither[:2], *dither[4:],
            num_warps=warps, **_UNFUSED,
        )  # fmt: skip
    return w


def add_low_rank(w: Tensor, u: Tensor, v: Tensor, unit: float, scales: Sequence[float]) -> list[Tensor]:
    """As `zotune.kernels.add_low_rank`."""
    (rows, columns), rank = w.shape, u.shape[1]
    # Factors column by column, so that neighbours are read together, and where possible in the dtype of `w`: the same
    # width of load gives both the same layout over threads, and nothing is exchanged between them.
    dtype = torch.promote_types(w.dtype, u.dtype)
    w, u, v = w.contiguous(), *(factor.t().to(dtype).contiguous() for factor in (u, v))
    outs = tuple(torch.empty_like(w) for _ in scales)
    tiles = triton.cdiv(rows, _ROWS) * triton.cdiv(columns, _COLUMNS)
    with torch.cuda.device_of(w):
        _add_low_rank_kernel[(tiles,)](
            w, outs, tuple(float(scale) for scale in scales), u, v, float(unit), rows, columns,
            rank, _ROWS, _COLUMNS, num_warps=4, **_UNFUSED,
        )  # fmt: skip
    return list(outs)


def warm_up(device: torch.device | str) -> None:
    """Compile once on a small input; raises whatever the compiler raises, and ArithmeticError if a bit differs."""
    key, dither = Key(0, 0), Key(0, 0, 0, Purpose.DITHER)
    for law in plain.LAWS:
        for dtype in (torch.float32, torch.bfloat16):
            w = torch.linspace(-1, 1, 4096 + 7).to(dtype)
            bits = plain.bits16(dither, "warm", 0, w.numel())
            value = w.to(torch.float32) + torch.tensor(1e-3) * plain.noise(law, key, "warm", 0, w.numel())
            (moved,), folded = add_noise(w.to(device), law, key, "warm", 0, [1e-3]), w.to(device, copy=True)
            fold(folded, law, key, "warm", 0, 1e-3, dither)
            store_for(dtype).write(w, value, lambda bits=bits: bits)  # type: ignore[misc]
            if not (torch.equal(moved.cpu(), value.to(dtype)) and torch.equal(folded.cpu(), w)):
                raise ArithmeticError(f"the {law} kernel for {dtype} differs from the plain one")
