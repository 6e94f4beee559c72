"""Any number of processes ends with the bytes of one."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from zotune.distributed.group import Group
from zotune.distributed.parallel import Parallel
from zotune.errors import ConfigError, NonFiniteLoss, UserError
from zotune.estimate import Point
from zotune.methods import METHODS
from zotune.noise import Key

Crowd = Callable[..., dict[str, Any]]

# Units of three rows that end in one of one row; evaluations and snapshots on the way.
BUSY: dict[str, Any] = {"eval_every": 3, "snapshot_every": 2, "micro_batch_size": 3, "batch_size": 12, "check_every": 2}

COURSES: dict[str, tuple[list[int], list[str]]] = {
    "data": ([2, 4], []),
    "data-three": ([3], ["--queries", "2", "--dtype", "bfloat16"]),
    "probes": ([4], ["--parallel", "probes", "--queries", "4"]),
    "signs": ([2], ["--parallel", "signs", "--queries", "2"]),
    "data-probes": ([4], ["--parallel", "data+probes", "--batch-size", "6", "--queries", "2"]),
    "data-signs": ([4], ["--parallel", "data+signs", "--batch-size", "6"]),
    "folded": ([2], ["--method", "lozo", "--interval", "3"]),
    "reused": ([2], ["--scope", "last:1", "--parallel", "data+probes", "--queries", "2"]),
    "inputs-probes": ([2], ["--method", "agzo", "--parallel", "probes", "--queries", "4"]),
    "inputs-both": ([2], ["--method", "aimzo", "--parallel", "data+probes", "--method-arg", "probes=3"]),
    "inputs-signs": ([2], ["--method", "agzo", "--parallel", "signs", "--method-arg", "sided=two"]),
    "examples-signs": ([2], ["--method", "grzo", "--parallel", "data+signs"]),
    "growing": ([2], ["--method-arg", "samples_over=5", "--queries", "4", "--parallel", "probes"]),
}


def wrong(found: dict[str, Any]) -> dict[str, Any]:
    """The courses that differ from a single process in anything."""
    fine = {"same": True, "silent": True, "left": False}
    return {
        f"{name} in {size}": one
        for name, sizes in found.items()
        for size, one in sizes.items()
        if {key: one.get(key) for key in fine} != fine or one["processes"] != int(size)
    }


def test_groups_end_with_the_bytes_of_one_process(crowd: Crowd) -> None:
    """1, 2, 3 and 4 processes and every way of sharing: the same journal (with its final hash) and the same metrics."""
    found = crowd("courses", {"courses": COURSES}, **BUSY)
    assert wrong(found) == {}
    # Two losses of 3 rows each for two units of two processes: losses and counts, and a few numbers to compare.
    assert found["data"]["2"]["message_bytes"] == 5 + 22 + 2 * 2 * (4 + 3 * 8)
    assert found["signs"]["2"]["message_bytes"] == 5 + 22 + 4 * 2 * (4 + 3 * 8)


@pytest.mark.slow
def test_every_method_in_two_processes(crowd: Crowd) -> None:
    """Each row of the method table, shared over micro-batches."""
    flags = {name: ([2], ["--method", name]) for name in METHODS}
    found = crowd("courses", {"courses": flags}, steps=3, batch_size=4, micro_batch_size=2, eval=None)
    assert wrong(found) == {}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["probes", "data+signs"])
def test_every_method_in_every_mode(crowd: Crowd, mode: str) -> None:
    """Each method shared over its points; one whose step is a single forward is refused before it starts."""
    flags = {name: ([2], ["--method", name, "--parallel", mode]) for name in METHODS}
    found = crowd("courses", {"courses": flags}, **BUSY)
    refused = {name for name, one in found.items() if "codes" in one["2"]}
    assert wrong({name: one for name, one in found.items() if name not in refused}) == {}
    for name in refused:
        assert found[name]["2"]["codes"] == [2, 2] and "share the work of a step" in found[name]["2"]["said"][0]
    assert refused < METHODS.keys() and (mode == "probes" or not refused)


def test_a_loop_of_ones_own(crowd: Crowd) -> None:
    """An optimizer in an initialised process group: losses and weights of a single process, batches and closures."""
    found = crowd("script")
    alone = found["alone"]
    for name, closures in (("data", False), ("data closures", True), ("data+probes", False)):
        assert found[name] == {"codes": [0, 0], "found": [alone[str(closures)]] * 2}, name
    signs = found["signs"]["found"]
    assert signs[0] == signs[1] and signs[0]["means"] == pytest.approx(alone["False"]["means"], rel=1e-5)
    for one in found["other batches"]["found"]:
        assert "process 1 differs from the other in the first micro-batch" in one["error"] and "Remedy" in one["error"]
    assert "in step and number of micro-batches" in found["out of step"]["found"][0]["error"]
    assert found["shared"]["codes"] == [0, 0] and found["shared"]["found"][0]["message_bytes"] == 64


def test_what_is_refused() -> None:
    """A mode that is none, and a script without a process group."""
    with pytest.raises(ConfigError, match="parallel is 'model'. Remedy: one of data, probes"):
        Parallel("model")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no process group here. Remedy: start with torchrun"):
        Parallel("data")


@pytest.mark.parametrize(("size", "units", "owing"), [(2, 5, [1]), (3, 5, [2]), (5, 7, [2, 3, 4]), (4, 8, [])])
def test_rounds_of_a_sharded_model(size: int, units: int, owing: list[int]) -> None:
    """Micro-batches go round; who has none in the last round owes a forward, so that all run as many.

    A loss that is not finite comes at a forward's end and changes nothing of that; after another error nobody can wait.
    """
    batch, points = {"x": torch.zeros(2, 1)}, [Point(Key(0, 0), 1.0)]
    dealt: dict[int, int] = {}
    for rank in range(size):
        parallel = Parallel("data+shard", cast(Group, SimpleNamespace(rank=rank, size=size)))
        for error in (None, NonFiniteLoss("a loss is NaN. Remedy: a smaller lr."), UserError("A sock. Remedy: none.")):
            parallel.forget()
            assert parallel.in_step and not parallel.owes_forward()
            if error is not None:
                with parallel.deferring():
                    raise error
            broken = isinstance(error, UserError) and not isinstance(error, NonFiniteLoss)
            for unit in range(units):
                if not parallel.elsewhere(2, 1) and parallel.deal(points, batch, 1.0, False, 2):
                    assert not broken and dealt.setdefault(unit, rank) == rank
            assert parallel.units == units and parallel.examples == 2 * units
            assert parallel.owes_forward() == (rank in owing and not broken)
    assert dealt == {unit: unit % size for unit in range(units)}
