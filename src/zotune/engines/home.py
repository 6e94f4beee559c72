"""Where blocks wait while they are not on the device: CPU memory, or a file that is mapped into memory."""

from __future__ import annotations

import mmap
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from zotune.errors import RunError
from zotune.machine import free_disk_bytes

_PAGE = mmap.PAGESIZE


@final
@dataclass(frozen=True)
class Shelf:
    """The tensors of one block at home, and which bytes of the file they are (0, 0 without a file)."""

    tensors: list[Tensor]
    start: int = 0
    stop: int = 0


class Home(ABC):
    """Keeps the tensors of blocks. They can be read and written there at any time."""

    @abstractmethod
    def keep(self, tensors: Sequence[Tensor]) -> Shelf:
        """The values of a block's contiguous tensors, from now on here."""

    def announce(self, shelf: Shelf) -> None:  # noqa: B027 - memory is always there
        """A shelf will be read soon."""

    def leave(self, shelf: Shelf) -> None:  # noqa: B027 - memory is always there
        """A shelf was read or written, and is not needed for a while."""


@final
class Memory(Home):
    """CPU memory; pinned, where a GPU shall copy from it beside its other work."""

    def __init__(self, pinned: bool) -> None:
        self._pinned = pinned

    def keep(self, tensors: Sequence[Tensor]) -> Shelf:
        return Shelf([tensor.cpu().pin_memory() if self._pinned else tensor.cpu() for tensor in tensors])


@final
class Disk(Home):
    """A file of `size` bytes in `folder`, mapped into memory. It has no name: when the process ends, the disk is free.

    Nothing in it outlives the run, and nothing has to: the journal rebuilds the weights.
    Raises RunError where the disk has no room.
    """

    def __init__(self, folder: Path, size: int) -> None:
        while not folder.is_dir():  # `zotune tune` makes no folder of its own
            folder = folder.parent
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                # All of it now: a disk that is full later would end the process without a word.
                reserve = getattr(os, "posix_fallocate", None)
                if reserve is not None:
                    reserve(file.fileno(), 0, size)
                else:
                    file.truncate(size)
                self._map = mmap.mmap(file.fileno(), size)
        except OSError as error:
            raise RunError(
                f"the blocks need {size:,} bytes in {folder}, where {free_disk_bytes(folder):,} are free: "
                f"{error.strerror or error}. Remedy: free space there, or another --output-dir."
            ) from error
        self._used = 0

    @staticmethod
    def size_of(tensors: Sequence[Tensor]) -> int:
        """Bytes that a block takes: each tensor begins a page, so that it is as aligned as in memory."""
        return sum(-(-tensor.nbytes // _PAGE) * _PAGE for tensor in tensors)

    def keep(self, tensors: Sequence[Tensor]) -> Shelf:
        start, kept = self._used, []
        for tensor in tensors:
            home = torch.frombuffer(self._map, dtype=tensor.dtype, count=tensor.numel(), offset=self._used)
            kept.append(home.view(tensor.shape).copy_(tensor))
            self._used += self.size_of([tensor])
        shelf = Shelf(kept, start, self._used)
        self.leave(shelf)
        return shelf

    def announce(self, shelf: Shelf) -> None:
        self._advise("MADV_WILLNEED", shelf)

    def leave(self, shelf: Shelf) -> None:
        # The pages stay in the system's cache, written or not, as long as it has room; they are ours no longer.
        self._advise("MADV_DONTNEED", shelf)

    def _advise(self, what: str, shelf: Shelf) -> None:
        advice = getattr(mmap, what, None)
        if advice is not None and shelf.stop > shelf.start:
            self._map.madvise(advice, shelf.start, shelf.stop - shelf.start)
