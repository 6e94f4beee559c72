"""Finding the module where numbers stop being finite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def first_non_finite(model: nn.Module, forward: Callable[[], Any]) -> str:
    """Run `forward` once more and name the first module (in order of completion) whose output is not finite."""
    found: list[str] = []
    hooks = []
    for name, module in model.named_modules():

        def look(module: nn.Module, args: Any, output: Any, name: str = name) -> None:
            if not found and not all(bool(t.isfinite().all()) for t in _floats(output)):
                found.append(f"{name or 'the model'} ({type(module).__name__})")

        hooks.append(module.register_forward_hook(look))
    try:
        forward()
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else "the objective (every module's output is finite)"


def _floats(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() and output.device != torch.device("meta") else []
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, (list, tuple)):
        return [tensor for item in output for tensor in _floats(item)]
    return []
