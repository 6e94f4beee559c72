"""Many small tensors (norms, biases) updated as one: alone, each costs more in calls than in arithmetic.

The same bits as one by one (`writing.py`), for rules that look at each element alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import final

import torch
from torch import Tensor

from zotune import kernels
from zotune.direction import Direction, Target
from zotune.noise import Key
from zotune.rule import Block
from zotune.store import store_for
from zotune.writing import chunk_of


@final
class EndToEnd(Direction):
    """The direction of several tensors, each flattened, one behind the other."""

    def __init__(self, inner: Direction, targets: Sequence[Target]) -> None:
        self._inner, self._targets = inner, targets

    def block(self, target: Target, key: Key, start: int, stop: int) -> Tensor:
        return self._inner.joint(self._targets, key)[start:stop]


def chunks(targets: Sequence[Target]) -> Iterator[Sequence[Target]]:
    """Targets in their order, as many at once as scratch memory allows. All lie on one device."""
    held, size = list[Target](), 0
    for target in targets:
        if held and size + target.data.numel() > chunk_of(target.data.device):
            yield held
            held, size = [], 0
        held.append(target)
        size += target.data.numel()
    if held:
        yield held


def write_jointly(
    targets: Sequence[Target], direction: Direction, dither: Key, value: Callable[[Block], Tensor]
) -> None:
    """Write `value` of a block, (n,) float32 or wider, into tensors that the direction draws together, in place.

    They have one dtype and lie on one device. `dither`: the key of the bits that round 16-bit numbers.
    """
    flat = torch.cat([target.data if target.data.dim() == 1 else target.data.reshape(-1) for target in targets])
    side = EndToEnd(direction, targets)
    new = value(Block(side, Target("", flat), 0, flat))
    sizes = [(target.name, target.data.numel()) for target in targets]
    store_for(flat.dtype).write(flat, new, lambda: torch.cat(kernels.bits16_many(dither, sizes, flat.device)))
    parts = torch.split(flat, [count for _, count in sizes])
    shaped = [
        part if target.data.dim() == 1 else part.view(target.data.shape)
        for part, target in zip(parts, targets, strict=True)
    ]
    torch._foreach_copy_([target.data for target in targets], shaped)
