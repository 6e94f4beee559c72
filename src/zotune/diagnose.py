"""A loss that is not finite: the module where it began, and what the user is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zotune.errors import NonFiniteLoss


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


def non_finite(loss: float, step: int, scale: float, parameters: Sequence[Tensor], module: str | None) -> NonFiniteLoss:
    """The error for `loss` at weights + scale * z; `module` is None where nobody looked for where it began."""
    dtypes = sorted({str(parameter.dtype).removeprefix("torch.") for parameter in parameters})
    side = "+" if scale > 0 else "-" if scale else "0"
    where = f"the first non-finite output comes from {module}"
    if module is None:
        where = "where it began is not looked for in a sharded model"
    return NonFiniteLoss(
        f"the loss is {loss} at step {step}, side {side} ({scale:+g} z), dtype {', '.join(dtypes)}; {where}. "
        "The step was not applied. Remedy: a smaller eps or lr, float32 weights, or a look at this batch."
    )


def _floats(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() and output.device != torch.device("meta") else []
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, (list, tuple)):
        return [tensor for item in output for tensor in _floats(item)]
    return []
