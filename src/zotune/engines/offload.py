"""Models larger than the device: blocks wait in CPU memory or on disk and come to the device for their own forward.

A block's large weights lie at home. A hook before the block's forward copies them into a room on the device, one
behind it leaves the room to the next block. What lies outside the blocks, what several places share, and small tensors
stay on the device. When both sides of a direction ride in one forward, a block crosses once for both.

The update of a step waits too: it is folded into each block when that comes by next, in the pass of the next step,
before the block is evaluated, and goes home from there. `settle` does what waits at once. An update that waits is the
same computation on the same numbers as one that does not, so the weights end in the same bits. The idea is that of ZO2
(arXiv 2503.12668).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, final, overload

import torch
from torch import Tensor, nn

from zotune.direction import Target
from zotune.engines.away import Away
from zotune.engines.courier import Courier, Plain, Room, Streams
from zotune.engines.home import Disk, Home, Memory, Shelf
from zotune.engines.parts import SMALL, Part, Site, parts, sizes
from zotune.lazy import Perturbed
from zotune.weights import aligned

Job = Callable[[Tensor], None]


@final
class Offload:
    """Streams the blocks of `model`, which lies on the CPU, to `device`; the model itself is changed to that.

    Args:
        home: "cpu" keeps the blocks in memory (pinned for a GPU), "disk" in a file in `folder`.
        ahead: how many blocks are brought before they are asked for; None: one on a GPU, none on the CPU, where
            a file is announced to the system instead.
        small: parameters of at most so many elements stay on the device.

    The model's own parameters are those at home. They may be an update behind until `settle`; a forward of the model
    never is. Raises ConfigError for a model without a list of blocks, RunError for a disk without room.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device | str = "cpu",
        home: Literal["cpu", "disk"] = "cpu",
        folder: Path | None = None,
        ahead: int | None = None,
        small: int = SMALL,
    ) -> None:
        # With its number, as tensors there have it: "cuda" alone names another key.
        self.device, self.home = torch.empty(0, device=device).device, home
        self.parts = parts(model, small)
        self.sizes = sizes(model, self.parts)
        gpu = self.device.type == "cuda"
        self.ahead = (1 if gpu else 0) if ahead is None else ahead
        self.crossings = dict.fromkeys((part.name for part in self.parts), 0)  # how often each block came
        self.brought = self.sent = 0  # bytes, to the device and back
        self._courier: Courier = Streams(self.device) if gpu else Plain()
        self._home = self._made_home(folder or Path())
        self._shelves: dict[Part, Shelf] = {}
        for part in self.parts:
            shelf = self._shelves[part] = self._home.keep(part.tensors)
            for parameter, tensor in zip(part.parameters.values(), shelf.tensors, strict=True):
                parameter.data = tensor
        self._place_the_rest(model)
        self._part_of = {name: part for part in self.parts for name in part.parameters}
        self.away = {
            name: Away(name, parameter, self.device)
            for part in self.parts
            for name, parameter in part.parameters.items()
        }
        self._due: dict[str, list[Job]] = {}
        self._rooms: list[Room] = []  # free ones
        self.rooms = 0  # all that there are
        self._coming: dict[Part, tuple[Room, Any]] = {}
        self._inside: dict[Part, tuple[Room, list[tuple[Site, Any, Any]]]] = {}
        self._next: dict[Part, Part] = {}  # which block came behind which, as seen
        self._latest: Part | None = None
        for part in self.parts:
            part.module.register_forward_pre_hook(self._before(part))
            part.module.register_forward_hook(self._behind(part), always_call=True)

    def _made_home(self, folder: Path) -> Home:
        if self.home == "cpu":
            return Memory(pinned=self.device.type == "cuda")
        return Disk(folder, sum(Disk.size_of(part.tensors) for part in self.parts))

    def _place_the_rest(self, model: nn.Module) -> None:
        streamed = {id(parameter) for part in self.parts for parameter in part.parameters.values()}
        for module in model.modules():
            for parameter in module._parameters.values():
                if parameter is not None and id(parameter) not in streamed:
                    parameter.data = aligned(parameter.data.to(self.device))
            for key, buffer in module._buffers.items():
                module._buffers[key] = None if buffer is None else buffer.to(self.device)

    @property
    def device_bytes(self) -> int:
        """Bytes of weights and buffers on the device, at most so far: what stays there, and the rooms."""
        return self.sizes.resident + self.rooms * self.sizes.room

    def says(self) -> str:
        """What lies where, in one line."""
        all_of_it = (self.sizes.resident + self.sizes.streamed) / 1e6
        most = (self.sizes.resident + (1 + self.ahead) * self.sizes.room) / 1e6
        return (
            f"{len(self.parts)} blocks of up to {self.sizes.room / 1e6:,.1f} MB wait "
            f"{'on disk' if self.home == 'disk' else 'in CPU memory'}; the weights take {most:,.1f} MB of the device "
            f"in place of {all_of_it:,.1f} MB"
        )

    # --- updates that wait ---------------------------------------------------------------------------------------

    def defer(self, name: str, job: Job) -> bool:
        """Keep `job` until the block with parameter `name` comes by: it is given the data there, and changes it.

        False, and nothing is kept, for a parameter that stays on the device. Jobs are done in the order of the calls.
        """
        if name not in self._part_of:
            return False
        self._due.setdefault(name, []).append(job)
        return True

    def settle(self) -> None:
        """Do all jobs that wait, block by block. Then the parameters at home are the model's, and may be written."""
        for part in self.parts:
            if any(name in self._due for name in part.parameters):
                room = self._take(part)
                try:
                    self._do(part, room)
                finally:
                    self._give_back(part, room)
        self._forget()
        self._courier.settle()

    def _do(self, part: Part, room: Room) -> None:
        for name, home, data in zip(part.parameters, part.tensors, room.views(part.tensors), strict=True):
            if name not in self._due:
                continue
            with torch.inference_mode(False), torch.no_grad():
                for job in self._due[name]:
                    job(data)
                self._courier.send(data, home, room)
            self.sent += home.nbytes
            del self._due[name]

    # --- blocks on the move --------------------------------------------------------------------------------------

    def shown(self, targets: Sequence[Target]) -> Sequence[Target]:
        """The targets, each with its data on the device for as long as it is looked at."""
        return _Shown(self, targets)

    def held(self, target: Target) -> Target:
        """The target with its data on the device (on the CPU that at home, which must not be written)."""
        part = self._part_of.get(target.name)
        return target if part is None else replace(target, data=part.parameters[target.name].data.to(self.device))

    def _before(self, part: Part) -> Callable[..., None]:
        return lambda *_: self._enter(part)

    def _behind(self, part: Part) -> Callable[..., None]:
        return lambda *_: self._leave(part)

    def _enter(self, part: Part) -> None:
        self._leave(part)  # of a forward that was interrupted
        room, swapped = self._take(part), list[tuple[Site, Any, Any]]()
        self._inside[part] = room, swapped
        self._expect(part)
        self._do(part, room)
        for sites, data in zip(part.sites.values(), room.views(part.tensors), strict=True):
            for module, key in sites:
                there: Any = module._parameters[key]
                if isinstance(there, Perturbed):
                    ours: Any = Perturbed(replace(there.target, data=data), there.lanes)
                else:
                    ours = nn.Parameter(data, requires_grad=False)
                swapped.append(((module, key), there, ours))
                module._parameters[key] = ours

    def _leave(self, part: Part) -> None:
        if part not in self._inside:
            return
        room, swapped = self._inside.pop(part)
        for (module, key), there, ours in swapped:
            if module._parameters[key] is ours:
                module._parameters[key] = there
        self._give_back(part, room)

    def _take(self, part: Part) -> Room:
        """A room with the block in it, as it is at home."""
        if part in self._coming:
            room, coming = self._coming.pop(part)
        else:
            self._forget()
            room, coming = self._bring(part)
        self._courier.arrived(coming)
        return room

    def _forget(self) -> None:
        """Free the rooms of blocks that were brought ahead: another one is asked for, or they may soon be others."""
        for room, coming in self._coming.values():
            self._courier.arrived(coming)
            self._courier.used(room)
            self._rooms.append(room)
        self._coming.clear()

    def _bring(self, part: Part) -> tuple[Room, Any]:
        if self._rooms:
            room = self._rooms.pop()
        else:
            room = Room(self.sizes.room, self.device)
            self._courier.used(room)  # its memory may be that of a tensor that is being read still
            self.rooms += 1
        coming = self._courier.bring(part.tensors, room)
        self.crossings[part.name] += 1
        self.brought += part.bytes
        return room, coming

    def _give_back(self, part: Part, room: Room) -> None:
        self._courier.used(room)
        self._rooms.append(room)
        self._home.leave(self._shelves[part])

    def _expect(self, part: Part) -> None:
        """Prepare for the block that came behind this one the last time."""
        if self._latest is not None:
            self._next[self._latest] = part
        self._latest = part
        coming = self._next.get(part, part)
        if coming is part or coming in self._coming:
            return
        self._home.announce(self._shelves[coming])
        if len(self._coming) < self.ahead:
            self._coming[coming] = self._bring(coming)


@final
class _Shown(Sequence[Target]):
    """Targets whose data comes to the device while one iterates over them."""

    def __init__(self, offload: Offload, targets: Sequence[Target]) -> None:
        self._offload, self._targets = offload, targets

    def __iter__(self) -> Iterator[Target]:
        return map(self._offload.held, self._targets)

    def __len__(self) -> int:
        return len(self._targets)

    @overload
    def __getitem__(self, index: int) -> Target: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Target]: ...

    def __getitem__(self, index: int | slice) -> Target | Sequence[Target]:
        if isinstance(index, slice):
            return _Shown(self._offload, self._targets[index])
        return self._offload.held(self._targets[index])
