"""The fast path of noise: three functions, each equal bit for bit to its plain twin in `noise.py`.

* `noise`      elements `start:stop` of a parameter's noise;
* `add_noise`  `w + s * z` for one or more scales, reading `w` and drawing `z` once;
* `bits16`     the dither of stochastic rounding.

`torch.compile` serves them (C++ on the CPU, generated kernels on a GPU) where a compiler is at hand; otherwise, or with
`ZOTUNE_KERNELS=eager`, the plain twins run. `ZOTUNE_KERNELS=compiled` compiles whatever the size. The choice changes
speed only, never a bit.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from zotune import noise as plain
from zotune.noise import Key, Law

logger = logging.getLogger(__name__)

# Below this many elements a compiled call costs more in guards than it saves.
_WORTH_COMPILING = 1 << 15
# Compiling takes seconds: a scope smaller than this never earns them back.
_WORTH_STARTING = 1 << 22


@lru_cache(maxsize=1)
def _compiled() -> object | None:
    """The compiled twins, or None where this machine cannot build them (said once)."""
    try:
        from zotune.kernels import compiled

        compiled.warm_up()
        return compiled
    except Exception as error:  # the compiler's own failures have no common type
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        logger.warning(
            "compiled kernels are not available here (%s); the plain ones give the same bits, slower", reason
        )
        return None


def fast_for(elements: int) -> bool:
    """Whether a scope of `elements` parameters should run compiled kernels; compiles them on the first yes."""
    mode = os.environ.get("ZOTUNE_KERNELS", "auto")
    if mode == "eager" or (mode == "auto" and elements < _WORTH_STARTING):
        return False
    return _compiled() is not None


def _pick(name: str, count: int, fast: bool) -> Callable[..., Tensor] | None:
    if not fast or count < _WORTH_COMPILING:
        return None
    module = _compiled()
    return getattr(module, name) if module is not None else None


def noise(law: Law, key: Key, name: str, start: int, stop: int, device: torch.device, fast: bool = False) -> Tensor:
    """As `zotune.noise.noise`."""
    twin = _pick("noise", stop - start, fast)
    return (twin or plain.noise)(law, key, name, start, stop, device)


def add_noise(
    w: Tensor, law: Law, key: Key, name: str, start: int, scales: Sequence[float], fast: bool = False
) -> list[Tensor]:
    """`w + s * z` for each scale `s`, where `w` is the 1-D slice of the parameter that begins at element `start`.

    The product and the sum are two roundings in float32 (float64 for float64 weights), then one to `w.dtype`.
    """
    twin = _pick("add_noise", w.numel(), fast)
    if twin is not None and start % plain.per_block(law) == 0 and w.dtype != torch.float64:
        return list(twin(w, law, key, name, start, scales))
    z = noise(law, key, name, start, start + w.numel(), w.device, fast)
    return [add_scaled(w, z, scale) for scale in scales]


def add_scaled(w: Tensor, z: Tensor, scale: float) -> Tensor:
    """`w + scale * z` with two roundings in float32 (float64 for float64 `w`), returned in `w.dtype`."""
    wide = torch.float64 if w.dtype == torch.float64 else torch.float32
    factor = torch.tensor(scale, dtype=wide, device=w.device)
    return (w.to(wide) + factor * z.to(wide)).to(w.dtype)


def bits16(key: Key, name: str, start: int, stop: int, device: torch.device, fast: bool = False) -> Tensor:
    """As `zotune.noise.bits16`."""
    twin = _pick("bits16", stop - start, fast)
    return (twin or plain.bits16)(key, name, start, stop, device)
