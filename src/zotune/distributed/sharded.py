"""Models whose weights are shared out among processes: `fully_shard` of `torch.distributed.fsdp` (FSDP2).

Each process holds some rows of every tensor. A module's whole weights are gathered before its forward and dropped after
it, so the stand-ins of the perturber are put in between. An update is a process's own: noise is keyed by the element's
place in the whole tensor, so that any sharding ends with the same bits.

All processes must run the same forwards, in the same order: each of them gathers weights from all.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from inspect import signature
from typing import Any, final

import torch
from torch import Tensor, nn

from zotune.errors import ConfigError, UserError
from zotune.mapped import give_back_freed

Site = tuple[nn.Module, str]  # where a parameter hangs


def is_sharded(module: nn.Module) -> bool:
    """Whether `fully_shard` was applied to this very module."""
    # Without the library no model is sharded, and importing it takes long.
    library: Any = sys.modules.get("torch.distributed.fsdp")
    return library is not None and isinstance(module, library.FSDPModule)


def sharded_modules(model: nn.Module) -> list[Any]:
    """The modules inside that `fully_shard` was applied to, outer ones first."""
    return [module for module in model.modules() if is_sharded(module)]


def shard(model: nn.Module, device: torch.device, process_group: Any) -> nn.Module:
    """Share out the weights of a model, which every process holds, over a process group; each part lies on `device`.

    Block by block, so that a forward needs the weights of one block at a time, and of what lies outside all blocks.
    What has no memory, as the parameters of banks, is left whole in each process. Raises ConfigError where torch is too
    old for that.
    """
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import fully_shard

    if device.type == "cpu":
        give_back_freed()
    mesh = DeviceMesh.from_group(process_group, device.type)
    left: dict[str, Any] = {}
    whole = {parameter for parameter in model.parameters() if parameter.dim() and not any(parameter.stride())}
    if whole:
        if "ignored_params" not in signature(fully_shard).parameters:
            raise ConfigError("a bank over a sharded model needs torch 2.7. Remedy: pip install 'torch>=2.7'.")
        left["ignored_params"] = whole
        for parameter in whole:  # one number, seen many times: so on the device too
            parameter.data = parameter.data.as_strided((), ()).to(device).expand(parameter.shape)
    for block in blocks_of(model):
        fully_shard(block, mesh=mesh, **left)
    fully_shard(model, mesh=mesh, **left)
    return model


def blocks_of(module: nn.Module) -> Iterator[nn.Module]:
    """The modules in the outermost lists, but for those that share a parameter with others."""
    uses = Counter(id(p) for part in module.modules() for p in part._parameters.values() if p is not None)

    def inside(module: nn.Module) -> Iterator[nn.Module]:
        for child in module.children():
            yield from child if isinstance(child, nn.ModuleList) else inside(child)

    for block in inside(module):
        own = Counter(id(p) for part in block.modules() for p in part._parameters.values() if p is not None)
        if own and all(count == uses[place] for place, count in own.items()):
            yield block


def is_part(tensor: Tensor) -> bool:
    """Whether this process holds a part of the tensor only."""
    library: Any = sys.modules.get("torch.distributed.tensor")
    return library is not None and isinstance(tensor, library.DTensor)


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or all of one that is sharded: then every process must call this."""
    found: Tensor = tensor.full_tensor() if is_part(tensor) else tensor  # type: ignore[attr-defined]
    return found


def own_part(tensor: Tensor) -> tuple[Tensor, int]:
    """The elements that lie in this process, as they are, and the place of the first in the flattened tensor.

    Raises ConfigError for a sharding that is not by rows.
    """
    if not is_part(tensor):
        return tensor, 0
    from torch.distributed.tensor import Shard

    sharding: Any = tensor
    part: Tensor = sharding.to_local()
    at = [axis for axis, placement in enumerate(sharding.placements) if not placement.is_replicate()]
    if not at:
        return part, 0
    mesh, rows = sharding.device_mesh, tensor.shape[0]
    each = -(-rows // mesh.size(at[0]))
    first = min(each * mesh.get_local_rank(at[0]), rows)
    if len(at) > 1 or type(sharding.placements[at[0]]) is not Shard or part.shape != (
        min(first + each, rows) - first, *tensor.shape[1:]
    ):  # fmt: skip
        raise ConfigError(
            f"a parameter of shape {tuple(tensor.shape)} is laid out as {sharding.placements}. Remedy: fully_shard by "
            "the first dimension, which is its default, and no tensor parallelism."
        )
    return part, first * (tensor.numel() // max(rows, 1))


def gathered(named: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """All of each tensor: sharded ones are gathered one after the other, by every process, and kept where `keep` is."""
    found: dict[str, Tensor] = {}
    for name, tensor in named.items():
        if not is_part(tensor):
            found[name] = tensor
            continue
        value = whole(tensor)
        if keep:
            found[name] = value.to("cpu")
    return found


def put(tensor: Tensor, value: Tensor) -> None:
    """Write `value`, of the whole tensor, into the elements that lie in this process."""
    part, first = own_part(tensor)
    part.copy_(value.reshape(-1)[first : first + part.numel()].view(part.shape))


def no_gradient(model: nn.Module) -> AbstractContextManager[Any]:
    """`inference_mode`, or `no_grad` for a sharded model: its buffers outlive a forward, whoever runs the next."""
    return torch.no_grad() if sharded_modules(model) else torch.inference_mode()


@contextmanager
def released(model: nn.Module) -> Iterator[None]:
    """Around forwards: when it is left each process holds its own part alone again, even if one was broken off."""
    try:
        yield
    except BaseException:
        for root in _roots(model):
            if hasattr(root, "reset_iter_state"):  # torch 2.13
                root.reset_iter_state()
        raise
    finally:
        for module in sharded_modules(model):
            module.reshard()


def _roots(model: nn.Module) -> list[Any]:
    """The outermost sharded modules."""
    if is_sharded(model):
        return [model]
    return [root for child in model.children() for root in _roots(child)]


@final
class Sharding:
    """The parameters of a sharded model that hang at some sites, known by name.

    Raises ConfigError for a layout that is not by rows.
    """

    def __init__(self, model: nn.Module, sites: dict[str, list[Site]]) -> None:
        self._sites: dict[str, list[tuple[Any, nn.Module, str]]] = {}
        self._kinds: dict[str, tuple[torch.dtype, torch.device]] = {}
        self.somewhere = bool(sharded_modules(model))  # also outside of the sites
        owners = dict(_owners(model, None)) if self.somewhere else {}
        for name, places in sites.items():
            parameter = places[0][0]._parameters[places[0][1]] if places else None
            if parameter is None or not is_part(parameter):
                continue
            own_part(parameter.detach())
            self._sites[name] = [(owners[module], module, key) for module, key in places]
            self._kinds[name] = parameter.dtype, parameter.device

    def __contains__(self, name: str) -> bool:
        return name in self._sites

    def __bool__(self) -> bool:
        return bool(self._sites)

    def refuse_unless(self, fit: bool, method: str) -> None:
        """Raises ConfigError where parts are not enough."""
        if self and not fit:
            raise ConfigError(
                f"{method} needs whole tensors, and the model is sharded: each process has a part of them. "
                "Remedy: mezo or lozo, or a model that is not sharded."
            )

    def parameter(self, name: str) -> Tensor:
        """The parameter as it is between forwards."""
        owner, module, key = self._sites[name][0]
        found = module._parameters[key]
        assert found is not None
        if not is_part(found):  # a plain forward leaves the outermost module's weights gathered
            owner.reshard()
            found = module._parameters[key]
            assert found is not None
        return found

    @contextmanager
    def replaced(self, names: Sequence[str], stand_in: Callable[[str, Tensor], Any]) -> Iterator[None]:
        """Within the context modules find `stand_in(name, gathered weight)` in their forwards."""
        by_owner: dict[Any, list[tuple[str, nn.Module, str]]] = {}
        for name in names:
            for owner, module, key in self._sites[name]:
                by_owner.setdefault(owner, []).append((name, module, key))
        hooks: list[Any] = []
        saved: dict[Any, list[tuple[nn.Module, str, Any]]] = {owner: [] for owner in by_owner}

        def enter(owner: Any, args: Any) -> None:
            leave(owner)
            made: dict[str, Any] = {}
            for name, module, key in by_owner[owner]:
                gathered = module._parameters[key]
                assert gathered is not None
                if name not in made:
                    self._check(name, gathered)
                    made[name] = stand_in(name, gathered.detach())
                saved[owner].append((module, key, gathered))
                module._parameters[key] = made[name]

        def leave(owner: Any, *_: Any) -> None:
            for module, key, gathered in saved[owner]:
                module._parameters[key] = gathered
            saved[owner].clear()

        try:
            for owner in by_owner:
                # Ours lie within FSDP's: behind the one that gathers, before the one that drops.
                hooks.append(owner.register_forward_pre_hook(enter))
                hooks.append(owner.register_forward_hook(leave, prepend=True))
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for owner in by_owner:
                leave(owner)

    def _check(self, name: str, gathered: Tensor) -> None:
        if (gathered.dtype, gathered.device) != self._kinds[name]:
            dtype, device = self._kinds[name]
            raise UserError(
                f"{name} is {dtype} on {device} and {gathered.dtype} on {gathered.device} in the forward pass. Remedy: "
                "fully_shard without MixedPrecisionPolicy and CPUOffloadPolicy; load the model in the dtype you want."
            )


def _owners(module: nn.Module, owner: Any) -> Iterator[tuple[nn.Module, Any]]:
    """Every module with the sharded module that gathers its weights."""
    owner = module if is_sharded(module) else owner
    yield module, owner
    for child in module.children():
        yield from _owners(child, owner)
