"""Processes with micro-batches of their own end as one process that is given all of them."""

from __future__ import annotations

import struct
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from tests.models import tiny, train

from zotune.distributed.group import Group
from zotune.distributed.own import OwnBatches
from zotune.errors import ConfigError, RunError, UserError
from zotune.estimate import Point
from zotune.noise import Key

Crowd = Callable[..., dict[str, Any]]
POINTS = [Point(Key(0, 0), side) for side in (1.0, -1.0)]


class Others(SimpleNamespace):
    """A group of this process and others, whose messages are played to it."""

    stop = None

    def exchange(self, message: bytes, failed: Any = None, usual: bool = False) -> list[bytes]:
        if failed is not None:
            raise failed
        return [message, *self.told]


def playing(*told: bytes) -> OwnBatches:
    return OwnBatches(cast(Group, Others(rank=0, size=1 + len(told), told=list(told))))


def test_trainers_of_two_processes_are_one(crowd: Crowd) -> None:
    """transformers' Trainer under torchrun: weights and logged losses of one process that takes both processes' rows
    before each step, micro-batches of several weights and of none among them; other ways of sharing are refused.
    """
    found = crowd("trainers")
    assert found["shared"] == {"codes": [0, 0], "found": [found["alone"]] * 2} and len(found["alone"]["losses"]) == 4
    for one in found["refused"]["found"]:
        assert "processes expect all of them. Remedy: leave parallel out" in one["error"]


def test_losses_of_all_processes_in_turn() -> None:
    """The first micro-batch of each process, then the second; one process may have fewer, or none."""
    batch = {"x": torch.zeros(2, 1)}
    messages = []
    for units in ([[[5.0, 6.0], [7.0, 8.0]]], []):
        other = playing()
        for losses in units:
            assert other.deal(POINTS, batch, 3.0, False, 2) == POINTS
            other.keep(losses)
        group: Any = other.group
        group.exchange = lambda message, *_, **__: messages.append(message) or [message]  # noqa: B023
        if units:
            other.gather(4, dict)
        else:
            messages.append(struct.pack("<Q6sI", 4, b"\0" * 6, 0))
    own = playing(*messages)
    for first in (1.0, 9.0):
        own.deal(POINTS, batch, 1.0, False, 2)
        own.keep([[first, first + 1], [first + 2, first + 3]])
    assert own.units == 2 and own.examples == 4
    found = own.gather(4, dict)
    assert found[0] == [(1.0, 1.0), (2.0, 1.0), (5.0, 3.0), (6.0, 3.0), (9.0, 1.0), (10.0, 1.0)]
    assert found[1] == [(3.0, 1.0), (4.0, 1.0), (7.0, 3.0), (8.0, 3.0), (11.0, 1.0), (12.0, 1.0)]
    assert own.units == 0


def test_what_fails_is_raised_by_the_step() -> None:
    """Where the others learn of it; and processes that are out of step are told apart."""
    own = playing()
    with own.deferring():
        raise UserError("a sock. Remedy: none.")
    with pytest.raises(UserError, match="a sock"):
        own.gather(0, dict)
    with pytest.raises(RunError, match="process 1 differs from the other in step"):
        playing(struct.pack("<Q6sI", 7, b"\0" * 6, 0)).gather(8, dict)
    with pytest.raises(ConfigError, match="check_every must be at least 1"):
        OwnBatches(cast(Group, None), check_every=0)


@pytest.mark.parametrize("method", ["grzo", "agzo"])
def test_methods_that_draw_from_the_examples_are_refused(method: str) -> None:
    """Each process would draw other directions."""
    with pytest.raises(ConfigError, match=f"{method} draws its directions from the examples.*Remedy"):
        train(method, tiny("llama"), parallel=playing())
