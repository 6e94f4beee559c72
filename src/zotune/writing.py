"""Writing an update into a parameter: a block at a time, with stochastic rounding where its dtype has fewer bits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from zotune import kernels
from zotune.direction import Direction, Target
from zotune.distributed.sharded import own_part
from zotune.noise import Key
from zotune.rule import Block
from zotune.store import store_for

# Elements of a parameter that are updated at once: scratch memory is a few times this.
_CHUNK = 1 << 20
# On a GPU, where a small part costs more to launch than to compute.
_CHUNK_GPU = 1 << 23


def chunk_of(device: torch.device) -> int:
    """Elements of parameters that are updated at once on a device."""
    return _CHUNK_GPU if device.type == "cuda" else _CHUNK


def write(
    target: Target,
    direction: Direction,
    dither: Key,
    value: Callable[[Block], Tensor],
    along: tuple[Key, float] | None = None,
) -> None:
    """Write `value`, (n,) float32 or wider of every block of some millions of elements, into a parameter, in place.

    Stored numbers with fewer bits are rounded stochastically, with bits of the key `dither`. Of a sharded parameter
    the part that lies here is written. `along`: (key, scale) where `value` is the weights plus `scale * z(key)`, which
    a GPU writes in one pass.
    """
    (weight, first), store = own_part(target.data), store_for(target.data.dtype)
    flat = weight.view(-1) if weight.is_contiguous() else weight.contiguous().view(-1)
    law = None if along is None else direction.stream(target, along[0])
    if along is not None and law is not None and weight.is_contiguous():
        if kernels.fold(flat, law, along[0], target.name, first, along[1], dither, target.fast):
            return
    # A mask reads the weights from before the update: a slice is written last, a copy when all slices are done.
    for start, stop in target.slices(chunk_of(flat.device)):
        start, stop = max(start, first), min(stop, first + flat.numel())
        if start >= stop:
            continue
        part = flat[start - first : stop - first]
        new = value(Block(direction, target, start, part))
        if kernels.round_into(part, new, dither, target.name, start, target.fast):
            continue
        store.write(
            part,
            new,
            lambda a=start, b=stop: kernels.bits16(dither, target.name, a, b, flat.device, target.fast),  # type: ignore[misc]
        )
    if flat.data_ptr() != weight.data_ptr():
        weight.copy_(flat.view(weight.shape))
