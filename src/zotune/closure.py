"""A closure, which holds its batch and gives one loss, as an objective."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from zotune.errors import UserError
from zotune.scorer import Objective


def as_objective(closure: Callable[..., Any]) -> Objective:
    """The closure with the arguments of an objective. Raises UserError for one that wants arguments of its own.

    The objective returns the loss as a tensor, a number as () float64, and raises UserError for what is neither.
    """
    try:
        inspect.signature(closure).bind()
    except TypeError:
        raise UserError(
            "without a batch a step takes a closure, which is called without arguments; this one wants some. Remedy: "
            "step(objective, batch), or estimate(objective, batch)."
        ) from None
    except ValueError:  # one of C, whose arguments are not told
        pass
    return lambda _model, _batch: _loss(closure())


def _loss(found: Any) -> Tensor:
    if isinstance(found, Tensor):
        return found
    try:
        return torch.tensor(float(found), dtype=torch.float64)
    except (TypeError, ValueError):
        raise UserError(f"the closure gives {found!r}, no loss. Remedy: a number or a tensor.") from None
