"""Products of activations with perturbed weights that are never made: low-rank terms, terms that differ in signs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zotune.direction import Factors, Signed
from zotune.lazy import Lanes, Perturbed

# A matrix larger than this is drawn or perturbed a block of rows at a time, so that scratch memory stays small.
BLOCK = 1 << 20
# On a GPU, where a small block costs more to launch than to compute.
_BLOCK_GPU = 1 << 24

Adder = Callable[[Tensor, Tensor, bool], None]


def block_of(device: torch.device) -> int:
    """Elements of a matrix that are drawn or perturbed at once on a device."""
    return _BLOCK_GPU if device.type == "cuda" else BLOCK


def adder(lanes: Lanes, weight: Any) -> Adder | None:
    """What adds each lane's term to `y = x W'` (or `x W`, transposed) in place, where no perturbed weight is needed."""
    if not isinstance(weight, Perturbed) or weight.dim() != 2:
        return None
    signed = weight.signed() if lanes.count > 1 else None
    if signed is not None:
        return lambda y, x, transposed: _add_signed(lanes, y, x, weight, signed, transposed)
    factors = weight.factors()
    if factors is not None:
        return lambda y, x, transposed: _add_low_rank(lanes, y, x, weight, factors, transposed)
    return None


def _add_signed(
    lanes: Lanes, y: Tensor, x: Tensor, weight: Perturbed, signed: Sequence[Signed], transposed: bool
) -> None:
    """`y_l += scale_l * r_l o ((s_l o x_l) U')` in place: one product with the U that all lanes share.

    Transposed, the weight is used as `x W`: `y_l += scale_l * s_l o ((r_l o x_l) U)`.
    """
    target, one, dtype = weight.target, signed[0], x.dtype
    columns = target.matrix_shape[1]
    lane_x, lane_y = x.reshape(lanes.count, -1, x.shape[-1]), y.view(lanes.count, -1, y.shape[-1])
    r = torch.stack([each.r for each in signed]).to(dtype).unsqueeze(1)
    given = [each.s for each in signed if each.s is not None]
    s = torch.stack(given).to(dtype).unsqueeze(1) if given else torch.ones(1, 1, 1, dtype=dtype, device=x.device)
    before, after = (r, s.expand(lanes.count, 1, -1)) if transposed else (s, r)
    flipped = lane_x * before if before is r or given else lane_x
    factors = one.base.factors(target, one.key)
    if factors is not None:
        left, right = (factors.u, factors.v) if transposed else (factors.v, factors.u)
        _add_flipped(lanes, lane_y, flipped @ left, right, after, factors.scale)
    else:
        for start, stop in target.slices(block_of(target.data.device)):
            rows = slice(start // columns, stop // columns)
            u = one.base.block(target, one.key, start, stop).to(dtype).view(-1, columns)
            if transposed:
                _add_flipped(lanes, lane_y, flipped[..., rows], u.t(), after)
            else:
                _add_flipped(lanes, lane_y[..., rows], flipped, u, after[..., rows])
    if target.pending is not None:
        p = target.pending
        left, right = (p.u, p.v) if transposed else (p.v, p.u)
        lane_y += (lane_x @ left.to(dtype) * p.scale) @ right.to(dtype).t()


def _add_flipped(lanes: Lanes, y: Tensor, x: Tensor, weight: Tensor, signs: Tensor, unit: float = 1.0) -> None:
    """`y_l += scale_l * unit * signs_l o (x_l weight')` in place, one call for neighbours that share a scale.

    The scale goes in as a number: rounded to 16 bits as a tensor it would change the radius.
    """
    first = 0
    for scale, points in groupby(lanes.points, key=lambda point: point.scale):
        run = slice(first, first + len(list(points)))
        y[run].addcmul_(F.linear(x[run], weight), signs[run], value=scale * unit)
        first = run.stop


def _add_low_rank(
    lanes: Lanes, y: Tensor, x: Tensor, weight: Perturbed, factors: list[Factors], transposed: bool
) -> None:
    """`y_l += scale_l * (x_l v) u'` in place (`(x_l u) v'` for a weight that is used transposed).

    An update that is not yet folded into the weight rides along as further columns: no pass over the weight either.
    """
    flat_x, flat_y = x.reshape(-1, x.shape[-1]), y.view(-1, y.shape[-1])
    pending = weight.target.pending
    if pending is not None:
        p = (pending.v, pending.u.to(x.dtype)) if not transposed else (pending.u.to(x.dtype), pending.v)
    runs = list(lanes.by_key())
    size = flat_x.shape[0] // lanes.count
    for first, last in runs:
        f = factors[first]
        left, right = (f.u, f.v) if transposed else (f.v, f.u)
        own, part = left.shape[1], flat_x[first * size : last * size]
        if pending is None:
            thin = part @ left
        elif not transposed and f.basis is not None and f.basis == pending.basis:  # they share v: one product for both
            thin = (part @ left).repeat(1, 2)
        else:
            thin = part @ torch.cat((left, p[0]), 1)
        for lane in range(first, last):
            thin[(lane - first) * size : (lane - first + 1) * size, :own] *= lanes.points[lane].scale * f.scale
        right = right if pending is None else torch.cat((right, p[1]), 1)
        # Under autocast y has fewer bits than the factors, and a product in place is not cast.
        flat_y[first * size : last * size].addmm_(thin.to(y.dtype), right.t().to(y.dtype))
