"""Whether 16-bit weights feel the radius: theta + eps z is rounded to the weights' dtype, like theta itself.

Numbers far from zero lie further apart than eps reaches. A probe then sees such a weight unmoved, or moved by a whole
spacing, while the update goes along z all the same: a random walk. Vectors (gains, biases) meet the activations before
they are rounded, and of matrices low-rank and sign-flipped terms are added to activations: neither has such a limit.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from zotune.direction import Direction, Target
from zotune.estimate import Point
from zotune.lazy import SHORT

logger = logging.getLogger(__name__)

# Elements of a tensor that are looked at: evenly spaced ones tell the share.
_LOOKED_AT = 1 << 14
# The share of the numbers in scope from which on a run says so.
_MUCH = 0.1


def unmoved(targets: Sequence[Target], direction: Direction, point: Point) -> float:
    """The share of the numbers in scope that a typical z (of size 1) times the point's scale leaves where they are."""
    still, count = 0.0, 0
    for target in targets:
        count += target.data.numel()
        if target.data.dtype in SHORT and _is_made(target, direction, point):
            still += target.data.numel() * _share(target.data, abs(point.scale))
    return still / count if count else 0.0


def _is_made(target: Target, direction: Direction, point: Point) -> bool:
    """Whether the perturbed tensor is ever computed: not where its product with the activations is."""
    if target.data.dim() != 2:
        return target.data.dim() > 2
    return direction.factors(target, point.key) is None and direction.signed(target, point.key) is None


def _share(weight: Tensor, scale: float) -> float:
    flat = weight.detach().reshape(-1)
    some = flat[:: max(1, flat.numel() // _LOOKED_AT)].to(torch.float32)
    info = torch.finfo(weight.dtype)
    # |w| = m 2**e with m in [1/2, 1): numbers there lie eps 2**(e - 1) apart, and nowhere closer than the smallest.
    spacing = torch.ldexp(torch.full_like(some, info.eps), torch.frexp(some).exponent - 1)
    spacing = spacing.clamp(min=info.smallest_normal * info.eps)
    return float((spacing / 2 > scale).float().mean())


def warn_unfelt(targets: Sequence[Target], direction: Direction, points: Sequence[Point]) -> None:
    """Log a warning where much of the scope does not feel the largest radius of a step's points."""
    point = max(points, key=lambda point: abs(point.scale))
    share = unmoved(targets, direction.everywhere(), point)
    if share >= _MUCH:
        dtype = next(str(t.data.dtype).removeprefix("torch.") for t in targets if t.data.dtype in SHORT)
        logger.warning(
            "%.0f %% of the numbers in scope are so large that in %s they lie further apart than eps %g reaches: "
            "probes do not move them as they should, and what is learned of them is noise. Remedy: a larger eps, "
            "float32, or a scope without them.",
            100 * share, dtype, abs(point.scale),
        )  # fmt: skip
