"""What is inside a packed linear layer: its scales, and its codes, a block of rows at a time.

A packed weight is `W[o, g * s + i] = scale[o, g] * code[o, g, i]`: groups of `s` inputs of one output row share a
scale. The codes are read through the libraries' own tensors and functions. None of these libraries is imported for it:
a model that has such a layer has imported its library.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from typing import Any, final

import torch
from torch import Tensor, nn

from zotune.errors import ConfigError


def packed_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The linear layers of a model whose weights torchao or bitsandbytes holds, by name."""
    return {name: module for name, module in model.named_modules() if is_packed(module)}


def is_packed(module: nn.Module) -> bool:
    """Whether this is a linear layer whose weight cannot be read as a matrix of numbers."""
    weight = module._parameters.get("weight")
    return isinstance(module, nn.Linear) and type(weight).__module__.partition(".")[0] in ("torchao", "bitsandbytes")


class Around(nn.Module, ABC):
    """A module that stands around a linear layer, `base`, packed or not, and answers as it does."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base = base

    @property
    def weight(self) -> Any:
        """The weight of the base: some models ask for its dtype or device."""
        return self.base.weight

    @property
    def bias(self) -> Any:
        """The bias of the base."""
        return self.base.bias

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """(..., columns) to (..., rows)."""


class Codes(ABC):
    """The codes and scales of one packed layer of `rows` outputs and `columns` inputs. Made by `codes_of`."""

    rows: int
    columns: int
    integers = True
    """Whether codes are whole numbers below 256: exact in every dtype of weights."""

    @abstractmethod
    def scale(self) -> Tensor:
        """The scales as the library holds them, (rows, groups) float32, a copy."""

    @abstractmethod
    def read(self, first: int, last: int, dtype: torch.dtype) -> Tensor:
        """The codes of the rows `first` to `last - 1`, (last - first, groups, columns / groups) in `dtype`."""

    @abstractmethod
    def put(self, scale: Tensor) -> None:
        """Make `scale` (rows, groups) the library's own."""


def codes_of(name: str, layer: nn.Module) -> Codes:
    """The codes of a packed layer called `name`. Raises ConfigError for a layout whose scales cannot be told apart."""
    weight: Any = layer.weight
    for kind in (Plain, Rows8, Blocks4):
        if kind.fits(weight):
            codes = kind(layer)
            if codes.columns % codes.scale().shape[1]:
                break
            return codes
    state: Any = getattr(weight, "quant_state", None)
    if getattr(state, "nested", False):
        raise ConfigError(
            f"the scales of {name} are packed themselves (double quantisation), so they cannot be trained. Remedy: a "
            "checkpoint packed without it, --quantize on the unpacked model, or another scope."
        )
    raise ConfigError(
        f"the scales of {name} ({type(weight).__name__}, {tuple(weight.shape)}) do not belong to groups inside "
        "its rows. Remedy: --quantize int8 on the unpacked model, or another scope."
    )


@final
class Plain(Codes):
    """torchao's plain layouts: integer codes, scales and zero points as tensors of their own."""

    def __init__(self, layer: Any) -> None:
        self._weight: Any = layer.weight
        self.rows, self.columns = self._weight.shape

    @staticmethod
    def fits(weight: Any) -> bool:
        """Whether a weight is one of them, without a rounding of activations."""
        names = ("qdata", "scale", "zero_point")
        rounded = any(getattr(weight, n, None) is not None for n in ("act_quant_kwargs", "activation_quantization"))
        plain = all(hasattr(weight, name) for name in names) and not rounded
        return plain and weight.qdata.shape == weight.shape and weight.scale.dim() == 2

    def scale(self) -> Tensor:
        return self._weight.scale.detach().to(torch.float32, copy=True)  # type: ignore[no-any-return]

    def read(self, first: int, last: int, dtype: torch.dtype) -> Tensor:
        groups = self._weight.scale.shape[1]
        codes = self._weight.qdata[first:last].to(dtype).view(last - first, groups, -1)
        zero = self._weight.zero_point
        return codes if zero is None else codes - zero[first:last].to(dtype).unsqueeze(-1)  # type: ignore[no-any-return]

    def put(self, scale: Tensor) -> None:
        self._weight.scale.copy_(scale)


@final
class Rows8(Codes):
    """bitsandbytes' 8-bit layer: one scale (absmax / 127) per row."""

    def __init__(self, layer: Any) -> None:
        self._layer: Any = layer
        self.rows, self.columns = self._layer.weight.shape

    @staticmethod
    def fits(weight: Any) -> bool:
        """Whether a weight is one of them."""
        return type(weight).__name__ == "Int8Params" and weight.dtype == torch.int8

    def _absmax(self) -> Tensor:
        # The first forward moves it from the weight into the layer's state.
        found: Tensor = self._layer.state.SCB if self._layer.weight.SCB is None else self._layer.weight.SCB
        return found

    def scale(self) -> Tensor:
        return (self._absmax().detach().float() / 127).unsqueeze(1)

    def read(self, first: int, last: int, dtype: torch.dtype) -> Tensor:
        codes: Tensor = self._layer.weight.data[first:last].to(dtype).unsqueeze(1)
        return codes

    def put(self, scale: Tensor) -> None:
        self._absmax().copy_(scale.flatten() * 127)


@final
class Blocks4(Codes):
    """bitsandbytes' 4-bit layer: two codes per byte, one scale (absmax) per block, which must lie inside a row."""

    integers = False

    def __init__(self, layer: Any) -> None:
        self._weight: Any = layer.weight
        self.rows, self.columns = self._weight.quant_state.shape

    @staticmethod
    def fits(weight: Any) -> bool:
        """Whether a weight is one of them, with scales that are not packed themselves."""
        state = getattr(weight, "quant_state", None)
        return state is not None and not state.nested and state.shape[1] % state.blocksize == 0

    def scale(self) -> Tensor:
        return self._weight.quant_state.absmax.detach().float().reshape(self.rows, -1).clone()  # type: ignore[no-any-return]

    def read(self, first: int, last: int, dtype: torch.dtype) -> Tensor:
        state, columns, library = self._weight.quant_state, self.columns, sys.modules["bitsandbytes"].functional
        packed = self._weight.data.reshape(-1).view(torch.uint8)[first * columns // 2 : last * columns // 2]
        # With scales of one the library's own weight is the codes.
        shape = torch.Size((last - first, columns))
        ones = torch.ones(shape.numel() // state.blocksize, device=packed.device)
        plain = library.QuantState(ones, shape, state.code, state.blocksize, quant_type=state.quant_type, dtype=dtype)
        codes: Tensor = library.dequantize_4bit(packed.view(-1, 1), plain)
        return codes.view(last - first, -1, state.blocksize)

    def put(self, scale: Tensor) -> None:
        self._weight.quant_state.absmax.copy_(scale.flatten())
