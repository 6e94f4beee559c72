"""What stands for a GPU where there is none: the meta device, whose tensors have no numbers.

Whatever reads one there (a copy to the CPU, a choice by a value, a size that depends on it) is an error: on a GPU the
host would wait for it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

GPU = torch.device("meta")


class Copies(TorchDispatchMode):
    """Lists what is copied to or from the device; single numbers in an operation are none, they go as arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default) and isinstance(out, Tensor):
            source = args[1] if func is torch.ops.aten.copy_.default else args[0]
            if source.device.type != out.device.type:
                self.found.append(f"{source.device.type} to {out.device.type} {tuple(out.shape)}")
        return out
