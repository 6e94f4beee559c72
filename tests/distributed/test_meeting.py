"""Processes find each other whatever earlier ones left in the store, and whatever their agents counted."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist

from zotune.distributed.meeting import agents_store, meet
from zotune.errors import RunError

SOON = timedelta(seconds=20)


def together(store: Any, ranks: list[int], size: int) -> dict[int, tuple[Any, bool]]:
    """What each of these ranks found, each in a thread of its own."""
    found: dict[int, tuple[Any, bool]] = {}

    def come(rank: int) -> None:
        found[rank] = meet(store, rank, size, SOON)

    threads = [threading.Thread(target=come, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return found


@pytest.mark.parametrize("size", [1, 2, 4])
def test_all_meet_in_a_place_of_their_own(size: int) -> None:
    """What one says there the others hear; those who meet later hear nothing of it, and know that they are later."""
    store = dist.HashStore()
    places = []
    for number in range(3):
        found = together(store, list(range(size))[::-1], size)
        assert sorted(found) == list(range(size))
        assert {again for _, again in found.values()} == {number > 0}
        assert not found[0][0].check(["said"])
        found[size - 1][0].set("said", "here")
        places.append(found[0][0])
    assert all(place.check(["said"]) for place in places)


def test_what_dead_processes_left_does_not_mislead() -> None:
    """A hello of one that was killed is answered for nothing; its successor's is answered too."""
    store = dist.HashStore()
    store.set("zotune/hello/1", "dead")
    store.set("zotune/hello/2", "dead, too")
    found: dict[int, Any] = {}
    first = threading.Thread(target=lambda: found.update({0: meet(store, 0, 3, SOON)}))
    first.start()
    while not store.check(["zotune/answer/dead"]):
        pass
    found |= together(store, [1, 2], 3)
    first.join(30)
    found[0][0].set("said", "here")
    assert sorted(found) == [0, 1, 2] and all(place.check(["said"]) for place, _ in found.values())


@pytest.mark.parametrize(("rank", "said"), [(0, "process 1 of this run has not come"), (1, "process 0 of this run")])
def test_one_that_does_not_come_is_named(rank: int, said: str) -> None:
    """After a while, with the remedy."""
    with pytest.raises(RunError, match=f"{said}.*Remedy"):
        meet(dist.HashStore(), rank, 2, timedelta(seconds=0.1))


def test_the_store_is_the_agents_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written there is there after a restart, whose number torch puts before every key."""
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    given = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": server.port, "RANK": 1, "WORLD_SIZE": 2}
    given |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": 0}
    for name, value in given.items():
        monkeypatch.setenv(name, str(value))
    store, rank, size = agents_store(SOON)
    store.set("said", "here")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    again, *_ = agents_store(SOON)
    assert (rank, size) == (1, 2) and again.get("said") == b"here"
