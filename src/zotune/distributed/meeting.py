"""How the processes that torchrun starts find each other, after restarts too.

torchrun keeps one store for all restarts, each agent counts its own restarts, and a process that was killed leaves what
it wrote there. So neither the count nor anything in the store tells which processes belong together. Process 0 tells
them: each other one says hello under a name of its own, process 0 answers to that name, and all meet under what it
answered. A name is answered by a living process 0 only, and a dead process never takes up its answer.
"""

from __future__ import annotations

import os
import time
import uuid
from datetime import timedelta
from typing import Any

from zotune.errors import RunError

_PAUSE = 0.02  # seconds between two looks at the store


def meet(store: Any, rank: int, size: int, patience: timedelta) -> tuple[Any, bool]:
    """A store that the present processes alone use, and whether others met in `store` before them.

    All `size` processes call it. Raises RunError where one does not come within `patience`.
    """
    import torch.distributed

    dist: Any = torch.distributed
    until = time.monotonic() + patience.total_seconds()
    if rank == 0:
        number = store.add("zotune/meetings", 1)
        place = f"{number}-{uuid.uuid4().hex}"
        _gather(store, place, size, until)
    else:
        place = _say_hello(store, rank, until)
        number = int(place.partition("-")[0])
    return dist.PrefixStore(f"zotune/{place}", store), number > 1


def _gather(store: Any, place: str, size: int, until: float) -> None:
    """Answer every hello, also a second one of the same rank, until all have come to the place."""
    answered: dict[int, str] = {}
    while True:
        missing = [rank for rank in range(1, size) if not store.check([f"zotune/{place}/{rank}"])]
        if not missing:
            return
        for rank in missing:
            if store.check([f"zotune/hello/{rank}"]):
                name = store.get(f"zotune/hello/{rank}").decode()
                if answered.get(rank) != name:
                    store.set(f"zotune/answer/{name}", place)
                    answered[rank] = name
        _wait(until, f"process {missing[0]}")


def _say_hello(store: Any, rank: int, until: float) -> str:
    name = uuid.uuid4().hex
    store.set(f"zotune/hello/{rank}", name)
    while not store.check([f"zotune/answer/{name}"]):
        _wait(until, "process 0")
    place: str = store.get(f"zotune/answer/{name}").decode()
    store.set(f"zotune/{place}/{rank}", "here")
    return place


def _wait(until: float, whom: str) -> None:
    if time.monotonic() > until:
        raise RunError(
            f"{whom} of this run has not come. Remedy: its own output says why; start the command again on all "
            "machines."
        )
    time.sleep(_PAUSE)


def agents_store(patience: timedelta) -> tuple[Any, int, int]:
    """The store that torchrun's agents keep, or that process 0 keeps where there are none; this process's rank, and how
    many there are.
    """
    import torch.distributed

    dist: Any = torch.distributed
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        # Not torch's own way to it, which goes by the agent's count of restarts.
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(address, port, is_master=False, timeout=patience)
        return store, int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    found: tuple[Any, int, int] = next(dist.rendezvous("env://", timeout=patience))
    return found
