"""Where blocks wait: memory, or a file without a name."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engines.blocks import deep

from zotune.engines.home import Disk, Memory, Shelf
from zotune.engines.offload import Offload
from zotune.errors import RunError


def test_a_disk_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is known at the start how much the blocks need: nothing is begun that cannot end."""

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(RunError, match=r"the blocks need 8,192 bytes in .*No space left.* Remedy: free space"):
        Offload(deep(2, 8), home="disk", folder=tmp_path, small=8)
    assert list(tmp_path.iterdir()) == []


TENSORS = [torch.arange(5.0), torch.arange(6).view(2, 3).to(torch.int16)]


@pytest.mark.parametrize("kind", ["cpu", "disk"])
def test_what_is_kept_is_kept_there(tmp_path: Path, kind: str) -> None:
    """Values, shapes and dtypes; written at home they are what was written, also after a while."""
    home = Memory(False) if kind == "cpu" else Disk(tmp_path, 2 * Disk.size_of(TENSORS))
    one, other = home.keep(TENSORS), home.keep([tensor + 1 for tensor in TENSORS])
    one.tensors[0][2] = 9.0
    for shelf in (one, other):
        home.leave(shelf)
        home.announce(shelf)
    assert torch.equal(one.tensors[0], torch.tensor([0.0, 1.0, 9.0, 3.0, 4.0]))
    assert torch.equal(one.tensors[1], TENSORS[1]) and torch.equal(other.tensors[1], TENSORS[1] + 1)
    assert [tensor.dtype for tensor in other.tensors] == [torch.float32, torch.int16]
    assert list(tmp_path.iterdir()) == []  # the file has no name


def test_each_tensor_begins_a_page(tmp_path: Path) -> None:
    """As aligned as in memory; a shelf says which bytes of the file are its own."""
    page = mmap.PAGESIZE
    large = torch.zeros(page // 4 + 1)
    assert Disk.size_of([*TENSORS, large, torch.empty(0)]) == 4 * page
    home = Disk(tmp_path, 6 * page)
    shelves = [home.keep(TENSORS), home.keep([large]), home.keep(TENSORS)]
    assert [(shelf.start, shelf.stop) for shelf in shelves] == [
        (0, 2 * page),
        (2 * page, 4 * page),
        (4 * page, 6 * page),
    ]
    assert all(tensor.data_ptr() % page == 0 for shelf in shelves for tensor in shelf.tensors)
    with pytest.raises(ValueError):
        home.keep(TENSORS)  # no more than was reserved
    assert Memory(False).keep(TENSORS) == Shelf(TENSORS, 0, 0)


def test_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    """The file lies in the nearest folder that is there, and none is made."""
    home = Disk(tmp_path / "no" / "such", Disk.size_of(TENSORS))
    assert torch.equal(home.keep(TENSORS).tensors[0], TENSORS[0]) and list(tmp_path.iterdir()) == []
