"""Room for blocks on the device, and what copies between home and there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor

# Tensors in a room begin at multiples of so many bytes: as aligned as torch's own, on any device.
_ALIGN = 512


@final
class Room:
    """Room on the device for one block at a time. `waits` are the events behind which it can be filled again.

    Its tensors are ordinary ones, made inside an evaluation or not: updates write them.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        with torch.inference_mode(False):
            self.bytes = torch.empty(size, dtype=torch.uint8, device=device)
        self.waits: list[Any] = []

    @staticmethod
    def size_of(tensors: Sequence[Tensor]) -> int:
        """Bytes that a block takes."""
        return sum(-(-tensor.nbytes // _ALIGN) * _ALIGN for tensor in tensors)

    def views(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Tensors of these shapes and dtypes, one behind the other; they hold whatever the room holds."""
        found, start = [], 0
        with torch.inference_mode(False):
            for tensor in tensors:
                part = self.bytes[start : start + tensor.nbytes]
                found.append(part.view(tensor.dtype).view(tensor.shape))
                start += self.size_of([tensor])
        return found


class Courier(ABC):
    """Copies tensors of a block, in the order in which it is asked to."""

    @abstractmethod
    def bring(self, home: Sequence[Tensor], room: Room) -> Any:
        """Begin to copy a block from home into a room. Returns what `arrived` takes."""

    @abstractmethod
    def arrived(self, coming: Any) -> None:
        """What is computed from here on finds the block in its room."""

    @abstractmethod
    def send(self, data: Tensor, home: Tensor, room: Room) -> None:
        """Copy a tensor as it is now from a room back to home."""

    @abstractmethod
    def used(self, room: Room) -> None:
        """What was computed so far has read the room; what comes may overwrite it."""

    @abstractmethod
    def settle(self) -> None:
        """Wait until everything that was sent is at home."""


@final
class Plain(Courier):
    """Copies at once: between the CPU's memory and a file."""

    def bring(self, home: Sequence[Tensor], room: Room) -> None:
        for data, tensor in zip(room.views(home), home, strict=True):
            data.copy_(tensor)

    def arrived(self, coming: Any) -> None:
        pass

    def send(self, data: Tensor, home: Tensor, room: Room) -> None:
        home.copy_(data)

    def used(self, room: Room) -> None:
        pass

    def settle(self) -> None:
        pass


@final
class Streams(Courier):
    """Copies to and from a GPU beside its computation, on one stream for each direction."""

    def __init__(self, device: torch.device) -> None:
        self._in: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._out: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._device = device

    def bring(self, home: Sequence[Tensor], room: Room) -> Any:
        for event in room.waits:
            self._in.wait_event(event)
        # A block must be at home before it is brought again. With two rooms the one before was awaited anyway.
        self._in.wait_stream(self._out)
        with torch.cuda.stream(self._in):
            for data, tensor in zip(room.views(home), home, strict=True):
                data.copy_(tensor, non_blocking=True)
        event = self._in.record_event()
        room.waits = [event]
        return event

    def arrived(self, coming: Any) -> None:
        torch.cuda.current_stream(self._device).wait_event(coming)

    def send(self, data: Tensor, home: Tensor, room: Room) -> None:
        self._out.wait_event(torch.cuda.current_stream(self._device).record_event())
        with torch.cuda.stream(self._out):
            home.copy_(data, non_blocking=True)
        room.waits.append(self._out.record_event())

    def used(self, room: Room) -> None:
        room.waits.append(torch.cuda.current_stream(self._device).record_event())

    def settle(self) -> None:
        self._out.synchronize()
