"""The random stream: Philox4x32-10 in torch integer operations. This file is the specification.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), ten rounds of Philox4x32.

A number is a pure function of (run seed, step, query, purpose, parameter name, element index):

* key      two 32-bit words = the first two output words of
  Philox(key = run seed, counter = (step lo, step hi, query, purpose));
* counter  (block lo, block hi, name lo, name hi), where name is the 64-bit BLAKE2b hash of the parameter's canonical
  name;
* block    `i // per_block(law)` for element `i` of the flattened (row-major) parameter.

Nothing is drawn in sequence, so any slice can be computed alone, on any device, by any number of threads, and noise of
a slice is the slice of the noise. The laws are integers, so the bits are the same everywhere:

* rademacher  128 signs per block: bit `i % 32` of word `(i % 128) // 32`; a set bit is +1, a clear bit is -1;
* gaussian    8 values per block: the low 12 bits of half-word `i % 8` (low half first) index QUANTILES, the normal
  quantiles at (k + 0.5) / 4096, scaled to variance 1, in units of 1/4096. Excess kurtosis -0.009, largest value 3.67.

The same half-words, all 16 bits, are the dither of stochastic rounding (`bits16`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import lru_cache
from hashlib import blake2b
from statistics import NormalDist
from typing import Literal, TypeVar, final

import torch
from torch import Tensor

STREAM = "philox4x32-10/zotune"
STREAM_VERSION = 1

Law = Literal["rademacher", "gaussian"]
LAWS: tuple[Law, ...] = ("rademacher", "gaussian")
_PER_BLOCK = {"rademacher": 128, "gaussian": 8}

_MASK = 0xFFFFFFFF
_MULTIPLIER_0, _MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
_WEYL_0, _WEYL_1 = 0x9E3779B9, 0xBB67AE85

# An integer table, so that a last-bit difference between maths libraries cannot reach the stream.
# 4096.6512 instead of 4096 restores the variance that the cut tails cost: it is 1 within 1e-6.
QUANTILES: tuple[int, ...] = tuple(round(NormalDist().inv_cdf((k + 0.5) / 4096) * 4096.6512) for k in range(4096))


class Purpose(IntEnum):
    """What a number is for; a part of the key, so that no two uses share bits."""

    DIRECTION = 0
    BASIS = 1
    DITHER = 2
    CHECK = 3
    CHOICE = 4


@final
@dataclass(frozen=True)
class Key:
    """One stream: `seed` is the run's (64 bits), `step` counts from 0 (64 bits), `query` within the step (32 bits).

    held: a place on a device, (2,) int64, that the words are read from in place of one's own (`zotune.graphs`): those
    that lie there when a recorded operation runs.
    """

    seed: int
    step: int
    query: int = 0
    purpose: Purpose = Purpose.DIRECTION
    held: Tensor | None = field(default=None, compare=False, repr=False)

    def scalars(self) -> tuple[Tensor, Tensor]:
        """The words as tensors without dimensions: where they are held, or on the CPU.

        Left on the CPU: a GPU takes one number as an argument, and would wait for a copy of it.
        """
        if self.held is not None:
            return self.held[0], self.held[1]
        return torch.tensor(self.words()[0]), torch.tensor(self.words()[1])

    def words(self) -> tuple[int, int]:
        """The two 32-bit words of the Philox key."""
        return _key_words(self.seed, self.step, self.query, int(self.purpose))


Words = TypeVar("Words", Tensor, int)  # 32-bit words: in int64 tensors, or one


def philox(counter: tuple[Words, ...], key: tuple[Words, Words]) -> tuple[Words, Words, Words, Words]:
    """Ten rounds of Philox4x32 on int64 tensors that hold 32-bit words, or on single ones; shapes broadcast."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # int64 products wrap modulo 2**64, which keeps the bits we need: a shift and a mask give both 32-bit halves.
        p0, p1 = c0 * _MULTIPLIER_0, c2 * _MULTIPLIER_1
        c0, c1, c2, c3 = (p1 >> 32) & _MASK ^ c1 ^ k0, p1 & _MASK, (p0 >> 32) & _MASK ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _WEYL_0) & _MASK, (k1 + _WEYL_1) & _MASK
    return c0, c1, c2, c3


@lru_cache(maxsize=65536)
def _key_words(seed: int, step: int, query: int, purpose: int) -> tuple[int, int]:
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must be in [0, 2**64), got {seed}")
    return philox((step & _MASK, step >> 32, query, purpose), (seed & _MASK, seed >> 32))[:2]


@lru_cache(maxsize=65536)
def name_words(name: str) -> tuple[int, int]:
    """The two 32-bit words that stand for a parameter's canonical name in the counter."""
    digest = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")
    return digest & _MASK, digest >> 32


def per_block(law: Law) -> int:
    """How many elements one Philox call serves under `law`."""
    return _PER_BLOCK[law]


def raw_words(blocks: Tensor, name0: Tensor, name1: Tensor, key0: Tensor, key1: Tensor) -> tuple[Tensor, ...]:
    """Four int32 tensors shaped like `blocks` (int64 block numbers): the Philox output of each block, word by word."""
    out = philox((blocks & _MASK, blocks >> 32, name0, name1), (key0, key1))
    return tuple(word.to(torch.int32) for word in out)


def words(key: Key, name: str, blocks: Tensor) -> Tensor:
    """The Philox output of `blocks` (n,) int64 as (n, 4) int32 on their device."""
    name0, name1 = (torch.tensor(word) for word in name_words(name))
    return torch.stack(raw_words(blocks, name0, name1, *key.scalars()), dim=-1)


@lru_cache(maxsize=8)
def quantile_table(device: torch.device) -> Tensor:
    """QUANTILES / 4096 as (4096,) float32 on `device`; every entry is exact."""
    return torch.tensor(QUANTILES, dtype=torch.float32, device=device) / 4096


def expand(law: Law, block_words: Tensor) -> Tensor:
    """From (n, 4) int32 words to (n, per_block) float32 values of the law, in element order."""
    if law == "rademacher":
        shifts = torch.arange(32, dtype=torch.int32, device=block_words.device)
        signs = (block_words.unsqueeze(-1) >> shifts & 1) * 2 - 1
        return signs.flatten(1).to(torch.float32)
    return quantile_table(block_words.device)[half_words(block_words) & 0xFFF]


def half_words(block_words: Tensor) -> Tensor:
    """From (n, 4) int32 words to (n, 8) int32 half-words in 0..65535, low half first."""
    pairs = torch.stack((block_words & 0xFFFF, block_words >> 16 & 0xFFFF), dim=-1)
    return pairs.flatten(1)


def _blocks(start: int, stop: int, size: int, device: torch.device) -> tuple[Tensor, int]:
    first = start // size
    return torch.arange(first, -(-stop // size), device=device), start - first * size


def noise(law: Law, key: Key, name: str, start: int, stop: int, device: torch.device | str = "cpu") -> Tensor:
    """Elements `start:stop` of the parameter's noise as (stop - start,) float32."""
    blocks, skip = _blocks(start, stop, per_block(law), torch.device(device))
    return expand(law, words(key, name, blocks)).flatten()[skip : skip + stop - start]


def noise_rows(law: Law, key: Key, name: str, rows: Tensor, columns: int) -> Tensor:
    """Rows `rows` (r,) int64 of the noise of a parameter with `columns` elements a row, as (r, columns) float32."""
    size = per_block(law)
    offset = rows * columns
    count = (columns + size - 2) // size + 1  # blocks that any row can touch, wherever it begins
    blocks = (offset // size).unsqueeze(1) + torch.arange(count, device=rows.device)
    values = expand(law, words(key, name, blocks.flatten())).view(rows.numel(), count * size)
    skip = (offset % size).unsqueeze(1) + torch.arange(columns, device=rows.device)
    return values.gather(1, skip)


def noise_many(
    law: Law,
    key: Key,
    sizes: Sequence[tuple[str, int]],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    """The whole noise of several parameters, given as (name, element count), in one draw: (count,) in `dtype` each."""
    values = expand(law, _words_many(key, tuple(sizes), per_block(law), torch.device(device))).to(dtype)
    return parts(values, sizes)


def bits16_many(key: Key, sizes: Sequence[tuple[str, int]], device: torch.device | str = "cpu") -> list[Tensor]:
    """As `bits16`, of whole parameters given as (name, element count), in one draw: (count,) int32 each."""
    return parts(half_words(_words_many(key, tuple(sizes), 8, torch.device(device))), sizes)


def _words_many(key: Key, sizes: tuple[tuple[str, int], ...], size: int, device: torch.device) -> Tensor:
    """The words (n, 4) of all blocks of `size` elements, parameter after parameter."""
    blocks, names = layout(sizes, size, device)
    return torch.stack(raw_words(blocks, names[:, 0], names[:, 1], *key.scalars()), dim=-1)


@lru_cache(maxsize=32)
def layout(sizes: tuple[tuple[str, int], ...], size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The blocks' numbers (n,) and the words (n, 2) of their names: the same in every step, so they are kept."""
    counts = [-(-count // size) for _, count in sizes]
    blocks = torch.cat([torch.arange(0), *(torch.arange(count) for count in counts)])
    words_of = torch.tensor([name_words(name) for name, _ in sizes], dtype=torch.int64).view(-1, 2)
    repeats = torch.tensor(counts, dtype=torch.int64)
    names = words_of.repeat_interleave(repeats, dim=0, output_size=sum(counts))
    return blocks.to(device), names.to(device)


def parts(values: Tensor, sizes: Sequence[tuple[str, int]]) -> list[Tensor]:
    """From (blocks, elements of a block) the elements of each parameter."""
    size = values.shape[1]
    parts = torch.split(values.flatten(), [-(-count // size) * size for _, count in sizes])
    return [part if len(part) == count else part[:count] for part, (_, count) in zip(parts, sizes, strict=True)]


def bits16(key: Key, name: str, start: int, stop: int, device: torch.device | str = "cpu") -> Tensor:
    """Sixteen random bits for each of the elements `start:stop`, as (stop - start,) int32 in 0..65535."""
    blocks, skip = _blocks(start, stop, 8, torch.device(device))
    return half_words(words(key, name, blocks)).flatten()[skip : skip + stop - start]
