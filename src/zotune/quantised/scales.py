"""The scales of packed layers as parameters: what QZO trains (arXiv 2505.13430). Scope `scales`.

`ScaledLinear` stands around a packed layer and computes `x W'` with `W = scale * codes`, where `scale` is an ordinary
float32 parameter that begins as the library's own. So all that holds for parameters holds for scales: they are
perturbed without being written, ride in lanes, are hashed, journalled and replayed.

Why the product is ours: with one scale per output row a hook could multiply the library's output by `scale / scale_0`.
With groups inside a row (int4, nf4) no function of the output can undo the old scales, so the codes are multiplied by
the new ones. One way for all formats was taken over two. A block of rows at a time is unpacked, as the libraries' own
CPU products unpack whole layers.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional

from zotune.errors import ConfigError
from zotune.quantised.layers import Around, codes_of, packed_layers

# Elements of a weight that are unpacked at one time.
_BLOCK = 1 << 20
PARAMETER = "quant_scale"


@final
class ScaledLinear(Around):
    """A packed linear layer whose scales, `quant_scale` (rows, groups) float32, can be trained."""

    def __init__(self, base: nn.Module, name: str) -> None:
        super().__init__(base)
        self._codes = codes_of(name, base)
        self.quant_scale = nn.Parameter(self._codes.scale())

    def forward(self, x: Tensor) -> Tensor:
        codes, scale = self._codes, self.quant_scale
        gain = codes.integers and scale.shape[1] == 1
        step, dtype = max(1, _BLOCK // codes.columns), x.dtype if gain else torch.float32
        outputs = []
        for first in range(0, codes.rows, step):
            last = min(first + step, codes.rows)
            product = _gained if gain else _weighed
            outputs.append(product(x, codes.read(first, last, dtype), scale[first:last]))
        y = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def settle(self) -> nn.Module:
        """The packed layer with the trained scales as its own."""
        with torch.no_grad():
            self._codes.put(self.quant_scale.detach())
        return self.base  # type: ignore[no-any-return]


def _gained(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """`x W'` of some rows with one scale each, (..., rows): the scale is a gain of the output, no weight is made."""
    return (functional.linear(x, codes[:, 0]) * scale.flatten()).to(x.dtype)


def _weighed(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """`x W'` of some rows, (..., rows), through their weight: codes (rows, groups, size), scale (rows, groups)."""
    # A leading 1 says that the codes are not examples: what is computed from them and a stand-in is one weight a lane.
    weight = (codes.unsqueeze(0) * scale.unsqueeze(-1)).to(x.dtype)
    return functional.linear(x, weight.reshape(codes.shape[0], -1))


def add_scales(model: nn.Module) -> nn.Module:
    """`model` with every packed layer inside a `ScaledLinear`, in place. Raises ConfigError where there is none."""
    layers = packed_layers(model)
    if not layers:
        raise ConfigError("scope scales: the model has no packed linear layers. Remedy: --quantize int8, int4 or nf4.")
    for name, layer in layers.items():
        model.set_submodule(name, ScaledLinear(layer, name))
    return model


def settle_scales(model: nn.Module) -> nn.Module:
    """`model` without the layers of `add_scales`, in place: its packed layers have the trained scales."""
    scaled = {name: module for name, module in model.named_modules() if isinstance(module, ScaledLinear)}
    for name, module in scaled.items():
        model.set_submodule(name, module.settle())
    return model
