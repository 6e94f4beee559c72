"""How a perturbed table of embeddings is read, lane by lane: only the rows that are looked up need noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zotune.direction import Signed
from zotune.errors import UserError
from zotune.kernels import add_scaled, low_rank
from zotune.lazy import Derived, Lanes, LaneTensor, Perturbed, bind, join


def embedding(lanes: Lanes, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The rule of `F.embedding`."""
    ids, weight, _, max_norm = bind(("input", "weight", "padding_idx", "max_norm"), args, kwargs)
    if max_norm is not None:
        raise UserError(
            f"embedding with max_norm rewrites {weight.known_as} in the forward pass. "
            "Remedy: leave it out of the scope."
        )
    # Tokens that a model has said itself differ from lane to lane: of their table it is known that they are examples.
    apart = weight.known_as in lanes.tokens and lanes.stacked(ids)
    stacked = lanes.count == 1 or apart or _same_in_all(lanes, ids)
    if stacked:
        parts = lanes.split(ids, "embedding")
        return join(_looked_up(lanes, weight, list(parts)))
    lanes.trace.append("embedding shared by all examples")
    return Derived(_looked_up(lanes, weight, [ids] * lanes.count), weight)


def _looked_up(lanes: Lanes, weight: LaneTensor, ids: Sequence[Tensor]) -> list[Tensor]:
    """The looked-up rows of each lane."""
    if not isinstance(weight, Perturbed):
        return [F.embedding(i, table) for i, table in zip(ids, weight.per_lane(), strict=True)]
    signed = weight.signed() if lanes.count > 1 else None
    if signed is not None:
        return _looked_up_signed(lanes, weight, signed, ids)
    found = []
    for first, last in lanes.by_key():
        unique, inverse = _distinct(lanes, ids[first:last])
        tables = _rows(lanes, weight, unique, first, last)
        found += [F.embedding(i, table) for i, table in zip(inverse, tables, strict=True)]
    return found


def _looked_up_signed(lanes: Lanes, weight: Perturbed, signed: Sequence[Signed], ids: Sequence[Tensor]) -> list[Tensor]:
    """As `_looked_up` where all lanes share one base: its rows are drawn once, each lane flips their signs."""
    target, one = weight.target, signed[0]
    unique, inverse = _distinct(lanes, ids)
    base = _value_rows(weight, unique)
    shared = one.base.rows(target, one.key, unique).view(base.shape)
    found = []
    for own, at, i, point in zip(signed, inverse, ids, lanes.points, strict=True):
        z = shared[at] * own.r[i].to(shared.dtype).unsqueeze(-1)
        z = z if own.s is None else z * own.s.to(shared.dtype)
        found.append(add_scaled(base[at], z, point.scale).to(target.data.dtype))
    return found


def _distinct(lanes: Lanes, ids: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The rows that are asked for, (n,), and which of them each id of each lane is, (lanes, ...)."""
    stacked = torch.stack(list(ids))
    if lanes.quiet:  # how many distinct ones there are, the host would have to wait for
        return stacked.flatten(), torch.arange(stacked.numel(), device=stacked.device).view(stacked.shape)
    unique, inverse = torch.unique(stacked, return_inverse=True)
    return unique, inverse


def _same_in_all(lanes: Lanes, ids: Tensor) -> bool:
    """Whether ids are stacked copy by copy: each copy then reads the same ones. Tells (T, T) positions from (B, T)."""
    if not lanes.stacked(ids):
        return False
    first, *others = ids.chunk(lanes.copies or lanes.count)
    if any(part.shape != first.shape for part in others):
        return False
    return not others or lanes.choose(torch.stack([(part == first).all() for part in others]).all())


def _rows(lanes: Lanes, weight: Perturbed, unique: Tensor, first: int, last: int) -> list[Tensor]:
    """The rows `unique` of a table in the lanes `first` to `last - 1`, which share a key."""
    target, points = weight.target, lanes.points[first:last]
    base = _value_rows(weight, unique)
    if not any(point.scale for point in points) or not lanes.direction.active(target, points[0].key):
        return [base.to(target.data.dtype)] * len(points)
    z = lanes.direction.rows(target, points[0].key, unique).view(base.shape)
    return [add_scaled(base, z, point.scale).to(target.data.dtype) for point in points]


def _value_rows(weight: Perturbed, rows: Tensor) -> Tensor:
    """Rows of the unperturbed table, an update that is still pending included."""
    base, p = weight.target.data[rows], weight.target.pending
    return base if p is None else base + low_rank(p.u[rows], p.v, p.scale).view(base.shape)
