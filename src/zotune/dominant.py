"""The block that dominates zeroth-order training, found by one forward: the scope `dominant` (arXiv 2606.05516).

The paper trains one block alone, the first whose output holds massive activations (single numbers hundreds of times
above the median, arXiv 2402.17762), and finds it to do as well as all of them. Massive activations stay in the residual
stream once they are there, so the first block whose peak reaches half of the highest is the one that makes them.

Differs from the paper in: we know it from its abstract, which names the block and not the measure of a peak.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from zotune.distributed.sharded import no_gradient
from zotune.errors import ConfigError
from zotune.scope import blocks

# The least peak, in medians of |activation|, that is called massive.
MASSIVE = 100.0


def dominant_layer(model: nn.Module, forward: Callable[[], Any]) -> int:
    """The number, from 0, of the first block with massive activations in `forward()`, which runs `model` once.

    Give it a batch of the training data: the weights are only read. Raises ConfigError for a model without a list of
    blocks, or without massive activations.
    """
    found, seen = blocks(model), list[float]()
    if found is None:
        raise ConfigError("scope dominant needs a model with a list of blocks (nn.ModuleList). Remedy: full.")

    def look(module: nn.Module, args: Any, output: Any) -> None:
        hidden: Tensor = (output if isinstance(output, Tensor) else output[0]).detach().abs().float()
        seen.append(float(hidden.max() / hidden.median()))

    hooks = [layer.register_forward_hook(look) for layer in found[1]]
    try:
        with no_gradient(model):
            forward()
    finally:
        for hook in hooks:
            hook.remove()
    highest = max(seen, default=0.0)
    if not highest >= MASSIVE:
        raise ConfigError(
            f"scope dominant: no block of this model has massive activations (the highest is {highest:.0f} times the "
            "median). Remedy: block:N or last:N."
        )
    return next(number for number, peak in enumerate(seen) if peak >= highest / 2)
