"""What of a model is streamed: its blocks, and of each the large weights that it alone uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

from torch import Tensor, nn

from zotune.engines.courier import Room
from zotune.errors import ConfigError
from zotune.scope import block_lists

# Tensors up to this size stay on the device: their noise is drawn together with that of all others.
SMALL = 1 << 14

Site = tuple[nn.Module, str]


@final
@dataclass(eq=False)
class Part:
    """A block: its large parameters by canonical name, and the modules that hold each."""

    name: str
    module: nn.Module
    parameters: dict[str, nn.Parameter] = field(default_factory=dict)
    sites: dict[str, list[Site]] = field(default_factory=dict)

    @property
    def tensors(self) -> list[Tensor]:
        """The parameters' data: at home once the model is offloaded."""
        return [parameter.data for parameter in self.parameters.values()]

    @property
    def bytes(self) -> int:
        """Bytes of the streamed parameters."""
        return sum(tensor.nbytes for tensor in self.tensors)


def parts(model: nn.Module, small: int = SMALL) -> list[Part]:
    """The blocks of `model` with what of them is streamed: contiguous parameters of more than `small` elements.

    Where no block has one so large, all of them are. A parameter that is used in more than one block, or outside them
    too, never is. Blocks with nothing to stream are left out. Raises ConfigError for a model without blocks.
    """
    blocks = [Part(f"{name}.{i}", block) for name, each in block_lists(model) for i, block in enumerate(each)]
    owners: dict[int, list[Part]] = {}
    for part in blocks:
        for module in part.module.modules():
            owners.setdefault(id(module), []).append(part)
    used: dict[int, set[Part | None]] = {}  # by which blocks; None: by what lies outside them
    sites: dict[int, list[Site]] = {}
    for module in model.modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                used.setdefault(id(parameter), set()).update(owners.get(id(module), [None]))
                sites.setdefault(id(parameter), []).append((module, key))
    own: list[tuple[Part, str, nn.Parameter]] = []
    for name, parameter in model.named_parameters():
        users = list(used[id(parameter)])
        if len(users) == 1 and users[0] and parameter.is_contiguous():
            own.append((users[0], name, parameter))
    for part, name, parameter in [each for each in own if each[2].numel() > small] or own:
        part.parameters[name] = parameter
        part.sites[name] = sites[id(parameter)]
    found = [part for part in blocks if part.parameters]
    if not found:
        raise ConfigError("the model has no list of blocks that could be streamed. Remedy: leave --offload out.")
    return found


@final
@dataclass(frozen=True)
class Sizes:
    """Bytes: what is streamed, what stays on the device (parameters and buffers), and the room for one block."""

    streamed: int
    resident: int
    room: int


def sizes(model: nn.Module, found: Sequence[Part]) -> Sizes:
    """What offloading the parts `found` of `model` takes; a model without weights will do."""
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    streamed = sum(part.bytes for part in found)
    return Sizes(
        streamed,
        sum(tensor.nbytes for tensor in tensors.values()) - streamed,
        max(Room.size_of(part.tensors) for part in found),
    )
