"""Room for blocks on the device: aligned, one block behind the other, and written outside any evaluation."""

from __future__ import annotations

import pytest
import torch

from zotune.engines.courier import Courier, Plain, Room

CPU = torch.device("cpu")
BLOCK = [torch.arange(5.0), torch.arange(6).view(2, 3).to(torch.int16), torch.ones(129, dtype=torch.float32)]


def test_a_block_takes_whole_pieces_of_512_bytes() -> None:
    """20, 12 and 516 bytes take one piece, one, and two; a tensor of nothing takes none."""
    assert Room.size_of(BLOCK) == 512 + 512 + 1024
    assert Room.size_of([torch.empty(0), torch.empty(128)]) == 512


def test_views_have_the_shapes_and_lie_apart() -> None:
    """Each begins a piece of the room and has the dtype of its tensor: what is written to one shows in no other."""
    room = Room(Room.size_of(BLOCK), CPU)
    views = room.views(BLOCK)
    assert [(view.shape, view.dtype) for view in views] == [(each.shape, each.dtype) for each in BLOCK]
    assert [view.data_ptr() - room.bytes.data_ptr() for view in views] == [0, 512, 1024]
    for view, tensor in zip(views, BLOCK, strict=True):
        view.copy_(tensor)
    assert all(torch.equal(view, tensor) for view, tensor in zip(room.views(BLOCK), BLOCK, strict=True))


def test_a_room_made_in_an_evaluation_can_be_updated() -> None:
    """Its tensors are ordinary ones: an update outside the evaluation writes them in place."""
    with torch.inference_mode():
        room = Room(Room.size_of(BLOCK), CPU)
        (first, *_) = room.views(BLOCK)
    assert not first.is_inference()
    first.fill_(2.0)
    assert torch.equal(room.views(BLOCK)[0], torch.full((5,), 2.0))


def test_a_block_comes_and_goes_at_once() -> None:
    """Between memory and a file there is nothing to wait for: what was brought is there, what was sent is at home."""
    courier, room = Plain(), Room(Room.size_of(BLOCK), CPU)
    home = [tensor.clone() for tensor in BLOCK]
    courier.arrived(courier.bring(home, room))
    views = room.views(BLOCK)
    assert all(torch.equal(view, tensor) for view, tensor in zip(views, BLOCK, strict=True))
    views[0].add_(1)
    assert torch.equal(home[0], BLOCK[0])
    courier.send(views[0], home[0], room)
    courier.used(room)
    courier.settle()
    assert torch.equal(home[0], BLOCK[0] + 1) and torch.equal(home[1], BLOCK[1]) and room.waits == []
    with pytest.raises(RuntimeError):
        courier.bring(home, Room(512, CPU))  # a room that is too small never holds half a block
    assert Courier.__abstractmethods__ == {"bring", "arrived", "send", "used", "settle"}
