"""What the matrices in scope are multiplied with as a model runs, for directions that follow the layers' inputs.

It looks at products, not at modules: `x @ W'` of a linear layer, `x @ W` of GPT-2's kind of one, or of any other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from zotune.lazy import LaneTensor, bind

# show(name, x, transposed): x is (tokens, columns) of x @ W', or, transposed, (tokens, rows) of x @ W.
Show = Callable[[str, Tensor, bool], None]

_T = torch.Tensor
# Of each product the names of its activation and of its weight, and whether it is x @ W' of what stands there.
_PRODUCTS: dict[Any, tuple[tuple[str, ...], str, str, bool]] = {
    F.linear: (("input", "weight"), "input", "weight", True),
    torch.addmm: (("input", "mat1", "mat2"), "mat1", "mat2", False),
    _T.addmm: (("input", "mat1", "mat2"), "mat1", "mat2", False),
    **{f: (("input", "other"), "input", "other", False) for f in (torch.matmul, _T.matmul, _T.__matmul__)},
    **{f: (("input", "mat2"), "input", "mat2", False) for f in (torch.mm, _T.mm)},
}


@final
class Inputs(TorchFunctionMode):
    """Within the context `show` is given the inputs of the first product with each of `weights` (name -> tensor).

    A weight may be given to the product as it is or as a transposed view of itself; others of its copies are not seen.
    """

    def __init__(self, weights: Mapping[str, Tensor], show: Show) -> None:
        super().__init__()
        self._names = {id(weight): name for name, weight in weights.items() if weight.dim() == 2}
        self._show = show
        self.shown: set[str] = set()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _PRODUCTS:
            names, activation, weight, turned = _PRODUCTS[func]
            given = dict(zip(names, bind(names, args, kwargs), strict=True))
            self._look(given[activation], given[weight], turned)
        return func(*args, **kwargs)

    def _look(self, x: Any, weight: Any, turned: bool) -> None:
        if not isinstance(x, Tensor) or not isinstance(weight, Tensor) or isinstance(x, LaneTensor):
            return
        base = weight if id(weight) in self._names else weight._base
        name = self._names.get(id(base))
        if base is None or name is None or name in self.shown:
            return
        if base is not weight:
            if weight.shape != base.shape[::-1] or weight.stride() != base.stride()[::-1]:
                return
            turned = not turned
        self.shown.add(name)
        self._show(name, x.detach().reshape(-1, x.shape[-1]), not turned)
