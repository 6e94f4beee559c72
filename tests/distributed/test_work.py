"""What one of several processes does and holds, as runs share it out."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
import torch
from tests.models import tiny

from zotune.distributed.group import Group
from zotune.distributed.parallel import Parallel
from zotune.distributed.work import Work
from zotune.errors import ConfigError
from zotune.estimate import Point
from zotune.noise import Key


@pytest.mark.parametrize("mode", ["data", "probes", "signs", "data+probes", "data+signs", "shard", "data+shard"])
@pytest.mark.parametrize(("size", "units", "queries"), [(1, 1, 1), (2, 4, 2), (3, 4, 4), (4, 8, 4)])
def test_the_busiest_process_runs_its_share(mode: str, size: int, units: int, queries: int) -> None:
    """Counted from what a group deals out: points at micro-batches, of all that there are."""
    points = [Point(Key(0, 0, query), side) for query in range(queries) for side in (1.0, -1.0)]
    batch, most = {"x": torch.zeros(2, 1)}, 0
    for rank in range(size):
        parallel = Parallel(mode, cast(Group, SimpleNamespace(rank=rank, size=size)))  # type: ignore[arg-type]
        dealt = sum(
            0 if parallel.elsewhere(2, len(points)) else len(parallel.deal(points, batch, 1.0, False, 2))
            for _ in range(units)
        )
        most = max(most, dealt)
    assert Work(size, mode).forwards(units, len(points), 2) == pytest.approx(most / (units * len(points)))


def test_too_many_processes_are_refused() -> None:
    """As a run refuses them, with what there is to share."""
    with pytest.raises(ConfigError, match="4 processes share the work of a step, which has 2 parts.*Remedy: fewer"):
        Work(4, "data").forwards(2, 2, 2)
    assert Work(4, "shard").forwards(1, 2, 2) == 1.0


def test_weights_of_a_sharded_model() -> None:
    """A part of all, two blocks whole, and what lies outside of them; without sharding everything."""
    model = tiny("llama")
    sizes = {id(t): t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers())}
    layers = model.model.layers
    block = sum(t.numel() * 4 for t in layers[0].parameters())
    total = sum(sizes.values())
    assert Work(1, "shard").weights(model, sizes) == Work(3, "data").weights(model, sizes) == total
    outside = total - len(layers) * block
    assert Work(3, "data+shard").weights(model, sizes) == -(-total // 3) + 2 * block + outside
    assert Work(3, "shard").sharded and not Work(1, "shard").sharded and not Work(3, "data").sharded
