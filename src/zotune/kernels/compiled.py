"""The noise functions through `torch.compile`: same integers, same two roundings, about twenty times faster on a CPU.

The words of a slice are drawn first (one loop, four planar outputs: stacking inside the loop would repeat Philox four
times) and then spent by a second loop that also does the arithmetic, so noise never crosses memory as float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zotune import noise as plain
from zotune.noise import Key, Law


def _draw(first: Tensor, count: int, name0: Tensor, name1: Tensor, key0: Tensor, key1: Tensor) -> tuple[Tensor, ...]:
    blocks = torch.arange(count, dtype=torch.int64, device=first.device) + first
    return plain.raw_words(blocks, name0, name1, key0, key1)


def _gaussian(halves: Tensor, table: Tensor) -> Tensor:
    return table[halves.to(torch.int32) & 0xFFF]


def _rademacher(words: Tensor) -> Tensor:
    shifts = torch.arange(32, dtype=torch.int32, device=words.device)
    return ((words.unsqueeze(-1) >> shifts & 1) * 2 - 1).to(torch.float32)


def _gaussian_add(w: Tensor, halves: Tensor, table: Tensor, scales: list[Tensor]) -> list[Tensor]:
    z = _gaussian(halves, table)
    return [(w.to(torch.float32) + scale * z).to(w.dtype) for scale in scales]


def _rademacher_add(w: Tensor, words: Tensor, scales: list[Tensor]) -> list[Tensor]:
    z = _rademacher(words)
    return [(w.to(torch.float32) + scale * z).to(w.dtype) for scale in scales]


# The masked forms are functions of their own: a branch inside would be compiled anew for each of its sides.
def _gaussian_add_below(
    w: Tensor, halves: Tensor, table: Tensor, scales: list[Tensor], reference: Tensor, h: Tensor
) -> list[Tensor]:
    return _masked(w, _gaussian(halves, table), scales, reference, h)


def _rademacher_add_below(w: Tensor, words: Tensor, scales: list[Tensor], reference: Tensor, h: Tensor) -> list[Tensor]:
    return _masked(w, _rademacher(words), scales, reference, h)


def _masked(w: Tensor, z: Tensor, scales: list[Tensor], reference: Tensor, h: Tensor) -> list[Tensor]:
    # Chosen by bits: a boolean choice keeps the compiler from vectorising the look-up of z, at twice the time.
    bits = torch.int32 if w.dtype == torch.float32 else torch.int16
    small = -(reference.to(torch.float32).abs() <= h).to(bits)
    moved = [(w.to(torch.float32) + scale * z).to(w.dtype).view(bits) for scale in scales]
    return [((each & small) | (w.view(bits) & ~small)).view(w.dtype) for each in moved]


def _low_rank_add(w: Tensor, us: list[Tensor], vs: list[Tensor], unit: Tensor, scales: list[Tensor]) -> list[Tensor]:
    z = us[0].unsqueeze(1) * vs[0]
    for u, v in zip(us[1:], vs[1:], strict=True):
        z = z + u.unsqueeze(1) * v
    z = z * unit
    return [(w.to(torch.float32) + scale * z).to(w.dtype) for scale in scales]


def _dither(halves: Tensor) -> Tensor:
    return halves.to(torch.int32) & 0xFFFF


def _round_bfloat16(value: Tensor, halves: Tensor) -> Tensor:
    # `zotune.store.round_bfloat16` in integers alone, thirteen times as fast; 0x7FC0 is not a number.
    bits = value.view(torch.int32)
    cut = (bits + (halves.to(torch.int32) & 0xFFFF)) >> 16
    return torch.where((bits & 0x7FFFFFFF) > 0x7F800000, 0x7FC0, cut).to(torch.int16).view(torch.bfloat16)


# Without fullgraph: a function that was recompiled too often (thread count, dtypes) runs plain instead of raising.
_OPTIONS = {"dynamic": True}
_draw_c = torch.compile(_draw, **_OPTIONS)  # type: ignore[call-overload]
_gaussian_c = torch.compile(_gaussian, **_OPTIONS)  # type: ignore[call-overload]
_rademacher_c = torch.compile(_rademacher, **_OPTIONS)  # type: ignore[call-overload]
_gaussian_add_c = torch.compile(_gaussian_add, **_OPTIONS)  # type: ignore[call-overload]
_rademacher_add_c = torch.compile(_rademacher_add, **_OPTIONS)  # type: ignore[call-overload]
_gaussian_add_below_c = torch.compile(_gaussian_add_below, **_OPTIONS)  # type: ignore[call-overload]
_rademacher_add_below_c = torch.compile(_rademacher_add_below, **_OPTIONS)  # type: ignore[call-overload]
_low_rank_add_c = torch.compile(_low_rank_add, **_OPTIONS)  # type: ignore[call-overload]
_dither_c = torch.compile(_dither, **_OPTIONS)  # type: ignore[call-overload]
_round_bfloat16_c = torch.compile(_round_bfloat16, **_OPTIONS)  # type: ignore[call-overload]


def _words(key: Key, name: str, first: int, count: int, device: torch.device) -> Tensor:
    scalars = [torch.tensor(value, device=device) for value in (first, *plain.name_words(name))]
    return torch.stack(_draw_c(scalars[0], count, *scalars[1:], *key.scalars()), dim=-1)


def _halves(key: Key, name: str, start: int, stop: int, device: torch.device) -> Tensor:
    first = start // 8
    words = _words(key, name, first, -(-stop // 8) - first, device)
    # On a little-endian machine the int16 view lists the half-words low half first, as the specification does.
    return words.view(torch.int16).flatten()[start - first * 8 : stop - first * 8]


def noise(law: Law, key: Key, name: str, start: int, stop: int, device: torch.device) -> Tensor:
    """As `zotune.noise.noise`."""
    if law == "gaussian":
        return _gaussian_c(_halves(key, name, start, stop, device), plain.quantile_table(device))  # type: ignore[no-any-return]
    first = start // 128
    words = _words(key, name, first, -(-stop // 128) - first, device).flatten()
    return _rademacher_c(words).flatten()[start - first * 128 : stop - first * 128]  # type: ignore[no-any-return]


def add_noise(
    w: Tensor,
    law: Law,
    key: Key,
    name: str,
    start: int,
    scales: Sequence[float],
    below: tuple[Tensor, float] | None = None,
) -> list[Tensor]:
    """As `zotune.kernels.add_noise`; `start` must be a multiple of the law's block."""
    factors = [torch.tensor(scale, dtype=torch.float32, device=w.device) for scale in scales]
    mask = () if below is None else (below[0], torch.tensor(below[1], dtype=torch.float32, device=w.device))
    if law == "gaussian":
        halves = _halves(key, name, start, start + w.numel(), w.device)
        add = _gaussian_add_below_c if mask else _gaussian_add_c
        return list(add(w, halves, plain.quantile_table(w.device), factors, *mask))
    whole = w.numel() // 32 * 32
    words = _words(key, name, start // 128, -(-w.numel() // 128), w.device).flatten()
    add = _rademacher_add_below_c if mask else _rademacher_add_c
    cut = [mask[0][:whole].view(-1, 32), mask[1]] if mask else []
    sums = [s.flatten() for s in add(w[:whole].view(-1, 32), words[: whole // 32], factors, *cut)]
    if whole == w.numel():
        return sums
    # The last, incomplete word: fewer than 32 elements.
    rest = plain.expand("rademacher", words[whole // 32].reshape(1, 1)).flatten()[: w.numel() - whole]
    if mask:
        tails = _masked(w[whole:], rest, factors, mask[0][whole:], mask[1])
    else:
        tails = [(w[whole:].to(torch.float32) + factor * rest).to(w.dtype) for factor in factors]
    return [torch.cat(pair) for pair in zip(sums, tails, strict=True)]


def add_low_rank(w: Tensor, u: Tensor, v: Tensor, unit: float, scales: Sequence[float]) -> list[Tensor]:
    """As `zotune.kernels.add_low_rank`."""
    factors = [torch.tensor(scale, dtype=torch.float32, device=w.device) for scale in (unit, *scales)]
    us, vs = ([column.contiguous() for column in f.to(torch.float32).unbind(1)] for f in (u, v))
    return list(_low_rank_add_c(w, us, vs, factors[0], factors[1:]))


def bits16(key: Key, name: str, start: int, stop: int, device: torch.device) -> Tensor:
    """As `zotune.noise.bits16`."""
    return _dither_c(_halves(key, name, start, stop, device))  # type: ignore[no-any-return]


def round_into(w: Tensor, value: Tensor, dither: Key, name: str, start: int) -> bool:
    """As `zotune.kernels.round_into`, of bfloat16 weights."""
    w.copy_(_round_bfloat16_c(value, _halves(dither, name, start, start + w.numel(), w.device)))
    return True


def warm_up() -> None:
    """Compile once on a small input; raises whatever the compiler raises, and ArithmeticError if a bit differs."""
    key, device = Key(0, 0), torch.device("cpu")
    w = torch.linspace(-1, 1, 4096 + 7)
    for law in plain.LAWS:
        z = plain.noise(law, key, "warm", 0, w.numel(), device)
        for fast, scale in zip(add_noise(w, law, key, "warm", 0, [1e-3, -1e-3]), (1e-3, -1e-3), strict=True):
            if not torch.equal(fast, w + torch.tensor(scale) * z):
                raise ArithmeticError(f"the compiled {law} kernel differs from the plain one")
