"""Loading a model with packed linear layers: transformers does it, with torchao or bitsandbytes.

    int8      torchao      8 bits, one scale per output row; activations stay as they are
    int4      torchao      16 levels, one scale per 32 inputs; a code takes a whole byte (see below)
    nf4       bitsandbytes 4 bits, two codes per byte, one scale per 64 inputs (QLoRA's type, arXiv 2305.14314)
    llm_int8  bitsandbytes 8 bits, one scale per output row; activations are rounded to 8 bits too (arXiv 2208.07339)

torchao's packed int4 layouts have kernels for GPUs alone, so int4 here is its plain layout, which runs everywhere.
Where 4 bits must be 4 bits, nf4 is the one.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import torch
from torch import nn

from zotune.errors import ConfigError, UserError
from zotune.quantised.layers import packed_layers

_GROUP = 32  # inputs that share a scale of int4


def quantisation(kind: str, dtype: torch.dtype | str, device: torch.device) -> dict[str, Any]:
    """What `from_pretrained` of transformers needs to load with packed layers onto `device`.

    Raises UserError where the library is missing, or finds that it cannot serve this device.
    """
    library, make = _KINDS[kind]
    imported(library, kind)
    imported("accelerate", kind)
    return {"quantization_config": make(dtype), "device_map": {"": device}}


def imported(library: str, kind: str) -> Any:
    """A library of the extra `quant`, imported without its remarks about other machines. Raises UserError."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with warnings.catch_warnings():
            # They speak of what these libraries call themselves, and would speak on every start.
            warnings.simplefilter("ignore")
            return import_module(library)
    except ImportError:
        raise UserError(f"quantize {kind} needs {library}. Remedy: pip install 'zotune[quant]'.") from None
    finally:
        logging.disable(before)


def settle(model: nn.Module, asked: str | None) -> nn.Module:
    """A model as it was loaded, with packed layers that its forwards leave as they are. Returns `model`.

    What is not packed gets memory of its own: as views into the checkpoint's file they would keep all of it mapped.

    On processors with bfloat16 instructions bitsandbytes repacks a 4-bit weight in its first forward, and multiplies
    in bfloat16 from then on: a weight would change under its hash, and a small perturbation would drown.
    Raises ConfigError where packed layers were `asked` for and there are none.
    """
    layers = packed_layers(model)
    if asked is not None and not layers:
        raise ConfigError(
            f"quantize {asked} packs linear layers, and {type(model).__name__} has none that it could. "
            "Remedy: leave --quantize out, or take another model."
        )
    if asked is not None:
        held = {id(layer._parameters["weight"]) for layer in layers.values()}
        for parameter in model.parameters():
            if id(parameter) not in held:
                parameter.data = parameter.data.clone()
    for layer in layers.values():
        if getattr(layer, "support_avx512bf16_for_cpu", False):
            layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    return model


def _torchao(name: str, **arguments: Any) -> Any:
    from transformers import TorchAoConfig

    return TorchAoConfig(getattr(import_module("torchao.quantization"), name)(**arguments))


def _bitsandbytes(**arguments: Any) -> Any:
    import transformers

    settings: Any = transformers.BitsAndBytesConfig
    return settings(**arguments)


def _int8(dtype: torch.dtype | str) -> Any:
    return _torchao("Int8WeightOnlyConfig")


def _int4(dtype: torch.dtype | str) -> Any:
    four: Any = torch.int4  # type: ignore[attr-defined]
    per_group = import_module("torchao.quantization.granularity").PerGroup(_GROUP)
    return _torchao("IntxWeightOnlyConfig", weight_dtype=four, granularity=per_group)


def _nf4(dtype: torch.dtype | str) -> Any:
    compute = torch.float32 if isinstance(dtype, str) else dtype
    return _bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)


def _llm_int8(dtype: torch.dtype | str) -> Any:
    if dtype != torch.float16:
        raise ConfigError("quantize llm_int8 multiplies what was rounded to float16. Remedy: --dtype float16, or int8.")
    return _bitsandbytes(load_in_8bit=True)


_KINDS: Mapping[str, tuple[str, Callable[[torch.dtype | str], Any]]] = {
    "int8": ("torchao", _int8),
    "int4": ("torchao", _int4),
    "nf4": ("bitsandbytes", _nf4),
    "llm_int8": ("bitsandbytes", _llm_int8),
}
