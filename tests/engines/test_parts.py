"""What of a model is streamed, and how many bytes that is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.engines.blocks import deep
from tests.models import tiny
from torch import nn

from zotune.engines.offload import Offload
from zotune.engines.parts import Sizes, parts, sizes
from zotune.errors import ConfigError


def test_what_several_places_use_stays() -> None:
    """A module in two blocks, a weight tied to the head, and small tensors are no part of what is streamed."""
    model = deep(3, 8)
    model.blocks[1].linear = model.blocks[0].linear
    model.tied = nn.Linear(8, 8)
    model.tied.weight = model.blocks[2].linear.weight
    assert {name for part in Offload(model).parts for name in part.parameters} == {"blocks.2.linear.bias"}
    streamed = {name for part in Offload(deep(2, 8), small=8).parts for name in part.parameters}
    assert streamed == {"blocks.0.linear.weight", "blocks.1.linear.weight"}
    with pytest.raises(ConfigError, match="no list of blocks.* Remedy: leave --offload out"):
        Offload(nn.Linear(3, 3))


def test_a_block_with_what_it_alone_uses() -> None:
    """Named as in the model, with every module that holds it; a tensor that is not contiguous stays."""
    model = deep(2, 8)
    model.blocks[0].again = model.blocks[0].linear
    model.blocks[1].linear.weight.data = model.blocks[1].linear.weight.data.t()
    first, second = parts(model, small=0)
    assert (first.name, list(first.parameters)) == ("blocks.0", ["blocks.0.linear.weight", "blocks.0.linear.bias"])
    assert list(second.parameters) == ["blocks.1.linear.bias"]
    weight = first.parameters["blocks.0.linear.weight"]
    assert weight is model.blocks[0].linear.weight and first.tensors[0].data_ptr() == weight.data_ptr()
    assert first.sites["blocks.0.linear.weight"] == [(model.blocks[0].linear, "weight")]
    model.blocks[1].twin = nn.Linear(8, 8, bias=False)
    model.blocks[1].twin.weight = model.blocks[1].linear.weight = nn.Parameter(torch.zeros(8, 8))
    (*_, second) = parts(model, small=0)
    assert [site for site, _ in second.sites["blocks.1.linear.weight"]] == [
        model.blocks[1].linear, model.blocks[1].twin
    ]  # fmt: skip


def test_two_lists_of_blocks() -> None:
    """An encoder's and a decoder's; what both sides share is part of neither, and a block without weights is none."""
    model: Any = tiny("t5")
    names = [part.name for part in parts(model, small=0)]
    assert names == ["encoder.block.0", "encoder.block.1", "decoder.block.0", "decoder.block.1"]
    assert not any("shared" in name for part in parts(model, small=0) for name in part.parameters)
    bare = deep(2, 8)
    bare.blocks.append(nn.ReLU())
    assert [part.name for part in parts(bare)] == ["blocks.0", "blocks.1"]


def test_bytes_of_each_place() -> None:
    """Streamed by the block, resident by what is left (buffers too, shared tensors once), room for the largest."""
    model = deep(3, 8)
    model.blocks[1].linear = nn.Linear(8, 8, bias=False)
    model.register_buffer("seen", torch.zeros(5))
    model.tied = model.head
    found = parts(model, small=0)
    assert [part.bytes for part in found] == [4 * 72, 4 * 64, 4 * 72]
    assert sizes(model, found) == Sizes(streamed=4 * 208, resident=4 * (18 + 5), room=2 * 512)
    with torch.device("meta"):
        shadow = deep(3, 8)
    assert sizes(shadow, parts(shadow, small=0)).streamed == 4 * 216
