"""A batch, and the points of its examples, as lanes see them: stacked along the first dimension."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from zotune.estimate import Point
from zotune.scorer import Objective


def batch_rows(batch: Any) -> int | None:
    """The number of examples of a batch: the first dimension that all its tensors share, or None."""
    if not isinstance(batch, Mapping):
        return None
    sizes = {value.shape[0] if value.dim() else -1 for value in batch.values() if isinstance(value, Tensor)}
    return sizes.pop() if len(sizes) == 1 and -1 not in sizes else None


def repeat(batch: Mapping[str, Any], lanes: int) -> dict[str, Any]:
    """The batch with every tensor stacked `lanes` times along dim 0."""
    return {
        key: value.repeat(lanes, *[1] * (value.dim() - 1)) if isinstance(value, Tensor) else value
        for key, value in batch.items()
    }


def asked(objective: Objective, model: nn.Module, batch: Any, copy: int | None) -> Tensor:
    """The losses of a batch or, of its copy in a proof, what tells more of the model than they do, if there is such."""
    witness = None if copy is None else getattr(objective, "witness", None)
    found: Tensor = objective(model, batch) if witness is None else witness(model, batch, copy)
    return found


def spread_out(point: Point, rows: int) -> list[Point]:
    """The point itself, or with `each` the point of every example of a batch of `rows`."""
    if not point.each:
        return [point]
    return [Point(replace(point.key, query=point.key.query + row), point.scale) for row in range(rows)]
