"""The fast path of noise: seven functions, each equal bit for bit to its plain twin, here or in `noise.py`.

* `noise`      elements `start:stop` of a parameter's noise;
* `noise_many`, `bits16_many`  whole small parameters at once: on a GPU alone;
* `add_noise`  `w + s * z` for one or more scales, reading `w` and drawing `z` once;
* `add_low_rank`  the same for `z = unit * u @ v.T`, without making z;
* `bits16`     the dither of stochastic rounding;
* `fold`       `w + s * z` in place, rounded by the store, in one pass over `w`: on a GPU alone.

`torch.compile` serves the CPU (C++), Triton a GPU, where a compiler is at hand; otherwise, or with
`ZOTUNE_KERNELS=eager`, the plain twins run. `ZOTUNE_KERNELS=compiled` compiles whatever the size. The choice changes
speed only, never a bit.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from zotune import noise as plain
from zotune.machine import is_fault
from zotune.noise import Key, Law

logger = logging.getLogger(__name__)

# On a CPU: below this many elements a compiled call costs more in guards than it saves.
_WORTH_COMPILING = 1 << 15
# On a CPU: compiling takes seconds, which a scope smaller than this never earns back. On a GPU the plain twins take
# about a hundred launches for every draw, whatever its size.
_WORTH_STARTING = 1 << 22
_CPU = torch.device("cpu")


@lru_cache(maxsize=8)
def _compiled(device: torch.device = _CPU) -> object | None:
    """The fast twins for a device, or None where this machine cannot build them (said once)."""
    try:
        # The compilers' own imports raise deprecation warnings that a caller may have turned into errors.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if device.type == "cuda":
                from zotune.kernels import gpu

                gpu.warm_up(device)
                return gpu
            from zotune.kernels import compiled

            compiled.warm_up()
            return compiled
    except Exception as error:  # the compilers' own failures have no common type
        _say(_reason(error))
        return None


def _reason(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


@lru_cache(maxsize=8)
def _say(reason: str) -> None:
    logger.warning("compiled kernels are not available here (%s); the plain ones give the same bits, slower", reason)


def fast_for(elements: int, device: torch.device = _CPU) -> bool:
    """Whether a scope of `elements` parameters should use compiled kernels. Nothing is compiled before it is needed."""
    mode = os.environ.get("ZOTUNE_KERNELS", "auto")
    return mode != "eager" and (mode != "auto" or device.type == "cuda" or elements >= _WORTH_STARTING)


def _fast(name: str, count: int, device: torch.device, fast: bool, *args: Any) -> Any:
    """What the fast twin returns, or None where the plain one must run."""
    least = 1 if device.type == "cuda" else _WORTH_COMPILING
    module = _compiled(device) if fast and count >= least else None
    twin = getattr(module, name, None)  # a function may have one on a GPU alone
    if twin is None:
        return None
    try:
        return twin(*args)
    except Exception as error:  # a new dtype or count of scales compiles anew, and that may fail in the middle of a run
        if is_fault(error):
            raise
        _say(_reason(error))
        return None


def noise(law: Law, key: Key, name: str, start: int, stop: int, device: torch.device, fast: bool = False) -> Tensor:
    """As `zotune.noise.noise`."""
    found: Tensor | None = _fast("noise", stop - start, device, fast, law, key, name, start, stop, device)
    return plain.noise(law, key, name, start, stop, device) if found is None else found


def noise_many(
    law: Law, key: Key, sizes: Sequence[tuple[str, int]], device: torch.device, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """As `zotune.noise.noise_many`; a GPU draws all in one launch."""
    count, fast = sum(size for _, size in sizes), key.held is None and device.type == "cuda" and fast_for(0, device)
    found: list[Tensor] | None = _fast("noise_many", count, device, fast, law, key, sizes, device, dtype)
    return plain.noise_many(law, key, sizes, device, dtype) if found is None else found


def bits16_many(key: Key, sizes: Sequence[tuple[str, int]], device: torch.device) -> list[Tensor]:
    """As `zotune.noise.bits16_many`; a GPU draws all in one launch."""
    count, fast = sum(size for _, size in sizes), device.type == "cuda" and fast_for(0, device)
    found: list[Tensor] | None = _fast("bits16_many", count, device, fast, key, sizes, device)
    return plain.bits16_many(key, sizes, device) if found is None else found


def add_noise(
    w: Tensor,
    law: Law,
    key: Key,
    name: str,
    start: int,
    scales: Sequence[float],
    fast: bool = False,
    below: tuple[Tensor, float] | None = None,
) -> list[Tensor]:
    """`w + s * z` for each scale `s`, where `w` is the 1-D slice of the parameter that begins at element `start`.

    The product and the sum are two roundings in float32 (float64 for float64 weights), then one to `w.dtype`. With
    `below = (reference, h)`, `reference` shaped like `w`, elements with `|reference| > h` stay `w`.
    """
    fits = start % plain.per_block(law) == 0 and w.dtype != torch.float64
    arguments = (w, law, key, name, start, scales, below)
    found: list[Tensor] | None = _fast("add_noise", w.numel(), w.device, fast and fits, *arguments)
    if found is not None:
        return found
    z = noise(law, key, name, start, start + w.numel(), w.device, fast)
    sums = [add_scaled(w, z, scale) for scale in scales]
    if below is None:
        return sums
    small = below[0].abs() <= below[1]
    return [torch.where(small, moved, w) for moved in sums]


def fold(w: Tensor, law: Law, key: Key, name: str, start: int, scale: float, dither: Key, fast: bool = False) -> bool:
    """`w + scale * z` into `w` (n,), in place, rounded as the store of its dtype does with the bits of `dither`.

    Returns whether it was done: else the caller adds, draws the dither and stores, which gives the same bits.
    """
    fits = w.is_contiguous() and start % plain.per_block(law) == 0 and w.dtype != torch.float64
    done = _fast("fold", w.numel(), w.device, fast and fits, w, law, key, name, start, scale, dither)
    return done is not None


def round_into(w: Tensor, value: Tensor, dither: Key, name: str, start: int, fast: bool = False) -> bool:
    """`value` (n,) float32 into bfloat16 `w` (n,), in place, rounded with the bits of `dither` as its store does.

    Returns whether it was done: else the caller draws the bits and stores, which gives the same ones.
    """
    fits = w.dtype == torch.bfloat16 and value.dtype == torch.float32
    done = _fast("round_into", w.numel(), w.device, fast and fits, w, value, dither, name, start)
    return done is not None


def add_scaled(w: Tensor, z: Tensor, scale: float) -> Tensor:
    """`w + scale * z` with two roundings in float32 (float64 for float64 `w`), returned in `w.dtype`."""
    wide = torch.float64 if w.dtype == torch.float64 else torch.float32
    # Left on the CPU: a GPU takes one number as an argument, and would wait for a copy of it.
    factor = torch.tensor(scale, dtype=wide)
    return (w.to(wide) + factor * z.to(wide)).to(w.dtype)


def add_low_rank(
    w: Tensor, u: Tensor, v: Tensor, unit: float, scales: Sequence[float], fast: bool = False
) -> list[Tensor]:
    """`w + s * (unit * u @ v.T)` for each scale `s`: `w` (rows, columns), `u` (rows, r), `v` (columns, r)."""
    fits = fast and w.dtype != torch.float64
    found: list[Tensor] | None = _fast("add_low_rank", w.numel(), w.device, fits, w, u, v, unit, scales)
    if found is not None:
        return found
    z = low_rank(u, v, unit)
    return [add_scaled(w, z, scale) for scale in scales]


def low_rank(u: Tensor, v: Tensor, unit: float) -> Tensor:
    """`unit * u @ v.T` as (rows, columns) float32, or float64 for float64 factors.

    Term by term, in order: a matrix product may sum in another order on another machine or slice.
    """
    wide = torch.float64 if u.dtype == torch.float64 else torch.float32
    u, v = u.to(wide), v.to(wide)
    z = u[:, :1] * v[:, 0]
    for r in range(1, u.shape[1]):
        z += u[:, r : r + 1] * v[:, r]
    return z.mul_(torch.tensor(unit, dtype=wide))


def bits16(key: Key, name: str, start: int, stop: int, device: torch.device, fast: bool = False) -> Tensor:
    """As `zotune.noise.bits16`."""
    found: Tensor | None = _fast("bits16", stop - start, device, fast, key, name, start, stop, device)
    return plain.bits16(key, name, start, stop, device) if found is None else found
