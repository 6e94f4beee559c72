"""Workers as actors of Ray (https://docs.ray.io), the extra `zotune[ray]`.

Ray finds machines for them, tells who is gone, and carries the messages. It serialises with pickle inside, so a cluster
must be of machines that trust each other; what zotune sends through it are bytes.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from typing import Any, final

from zotune.distributed.pool import Crew
from zotune.distributed.worker import Worker
from zotune.errors import ConfigError, UserError


def _reach(address: str) -> None:
    """Raises ConfigError where nobody listens at HOST:PORT: Ray itself would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdigit():
        return  # a word of Ray's own, such as auto
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"no Ray cluster at {address}: {error}. Remedy: `ray start --head` there, or another --address."
        ) from None


@final
class RayCrew(Crew):
    """Actors on the cluster at `address`, or on this machine alone.

    config, trust_remote_code: as `Worker` takes them. gpu_workers: the first so many ask for a GPU of their own, the
    others for none. An actor for which no machine has room waits until one joins the cluster. Raises UserError where
    Ray is missing, ConfigError where the cluster is.
    """

    def __init__(self, config: bytes, trust_remote_code: bool, workers: int, gpu_workers: int, address: str | None):
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else Ray warns of what it will do
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else Ray reports to its makers
        try:
            import ray
        except ImportError:
            raise UserError("a pool needs Ray. Remedy: pip install 'zotune[ray]'.") from None
        self._ray, self._given, self._gpu_workers = ray, (config, trust_remote_code), gpu_workers
        self._actors: dict[int, Any] = {}
        self._calls: dict[Any, int] = {}
        self._with_gpu: set[int] = set()
        own: dict[str, Any] = {} if address else {"num_cpus": workers + gpu_workers, "include_dashboard": False}
        if address:
            _reach(address)
        try:
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **own)
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            raise ConfigError(f"no Ray cluster at {address}: {reason}. Remedy: `ray start --head` there.") from None

    def hire(self, number: int) -> None:
        gpus = 1 if len(self._with_gpu) < self._gpu_workers else 0
        if gpus:
            self._with_gpu.add(number)
        # Never restarted by Ray: a worker begins with a model of its own, which the pool must hear of.
        kind = self._ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=0)(Worker)
        self._actors[number] = kind.remote(*self._given)
        self._calls[self._actors[number].join.remote()] = number

    def evaluate(self, number: int, records: bytes, task: bytes) -> None:
        self._calls[self._actors[number].evaluate.remote(records, task)] = number

    def wait(self, seconds: float) -> tuple[int, bytes | None] | None:
        ready: list[Any] = []
        until = time.monotonic() + seconds
        while not ready:  # in small parts, so that signals get through
            if time.monotonic() > until:
                return None
            ready, _ = self._ray.wait(list(self._calls), num_returns=1, timeout=0.2)
        number = self._calls.pop(ready[0])
        try:
            return number, bytes(self._ray.get(ready[0]))
        except self._ray.exceptions.RayActorError:
            self._forget(number)
            return number, None

    def dismiss(self, number: int) -> None:
        actor = self._actors[number]
        self._forget(number)
        self._ray.kill(actor)

    def _forget(self, number: int) -> None:
        del self._actors[number]
        self._with_gpu.discard(number)

    def close(self) -> None:
        for actor in self._actors.values():
            self._ray.kill(actor)
        self._actors.clear()
        self._ray.shutdown()
