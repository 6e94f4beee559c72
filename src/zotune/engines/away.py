"""A weight that is not on the device now: what shape it has can be asked, what it holds cannot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor

from zotune.errors import UserError
from zotune.lazy import METADATA


@final
class Away(torch.Tensor):
    """Has the shape and dtype of a weight, and the device it will come to; any use of its values is a UserError."""

    known_as: str  # the parameter's canonical name (Tensor.name is taken)

    @staticmethod
    def __new__(cls, name: str, like: Tensor, device: torch.device) -> Away:
        self: Away = torch.Tensor._make_wrapper_subclass(
            cls, like.shape, strides=like.stride(), dtype=like.dtype, device=device, requires_grad=False
        )
        self.known_as = name
        return self

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        return cls.__torch_dispatch__(func, types, args, kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = next((each.known_as for each in args if isinstance(each, Away)), "a weight")
        raise UserError(
            f"{name} is used outside the forward of its block, where its values are not on the device. "
            "Remedy: this model needs --offload left out."
        )
