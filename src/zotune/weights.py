"""The fingerprint of a set of weights, as docs/journal.md defines it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from zotune.distributed.sharded import is_part, whole


def weights_sha256(named: Mapping[str, Tensor]) -> str:
    """SHA-256 over the tensors in name order: for each its name, dtype, shape and raw little-endian bytes (hex).

    Of a tensor that is one number seen many times (all strides are 0) the bytes are those of that number. Of a sharded
    model every process must call it: one tensor after the other is gathered.
    """
    digest = hashlib.sha256()
    for name in sorted(named):
        tensor = _dense(whole(named[name].detach())).to("cpu").contiguous()
        shape = ",".join(str(size) for size in named[name].shape)
        dtype = str(tensor.dtype).removeprefix("torch.")
        digest.update(f"{name}\0{dtype}\0{shape}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def base_sha256(model: nn.Module) -> str:
    """SHA-256 over every parameter and persistent buffer of `model`, packed ones too; tied tensors count once."""
    return weights_sha256(dict(_unique(model.state_dict(keep_vars=True).items())))


def _unique(items: Iterable[tuple[str, Tensor]]) -> Iterable[tuple[str, Tensor]]:
    seen: set[tuple[int, torch.Size]] = set()
    for name, tensor in plain_parts(items):
        place = id(tensor) if is_part(tensor) else tensor.data_ptr()  # a process's part may be empty
        if (place, tensor.shape) not in seen:
            seen.add((place, tensor.shape))
            yield name, tensor


def _dense(tensor: Tensor) -> Tensor:
    """A tensor that is one number over and over as that number: it has no memory, and needs none for its hash."""
    return tensor if any(tensor.stride()) or tensor.numel() < 2 else tensor[(0,) * tensor.dim()]


def plain_parts(items: Iterable[tuple[str, Tensor]]) -> Iterable[tuple[str, Tensor]]:
    """Tensors as they lie in memory: one made of others (a packed weight's codes and scales) as these."""
    for name, tensor in items:
        if isinstance(tensor, Tensor) and is_part(tensor):
            yield name, tensor
        elif is_traceable_wrapper_subclass(tensor):
            inner = tensor.__tensor_flatten__()[0]
            yield from plain_parts((f"{name}.{part}", getattr(tensor, part)) for part in inner)
        elif isinstance(tensor, Tensor):
            yield name, tensor


def aligned(tensor: Tensor) -> Tensor:
    """The tensor at an address that matrix products like: at others they round otherwise, and a file's header decides
    where weights lie that are mapped from it.
    """
    return tensor.clone() if tensor.device.type == "cpu" and tensor.data_ptr() % 64 else tensor
