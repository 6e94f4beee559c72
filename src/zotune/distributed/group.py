"""Messages between the processes of a run, and how an error of one becomes an error of all.

Every exchange is one all-gather of bytes, so a process may say goodbye in place of any message: the others learn of it
in their next exchange and raise the same error. Nobody waits for a process that is gone.
"""

from __future__ import annotations

import json
import math
import signal
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, final

import torch
from torch import Tensor

from zotune import errors
from zotune.errors import NonFiniteLoss, RunError, Terminated, UserError

_HEAD = struct.Struct("<BI")  # how it goes, bytes of the message
# What is higher is raised where several processes fail at once. Lost: weights that another did not send.
_FINE, _LOST, _LEFT_OUT, _FAILED, _STOPPED = range(5)
_MOST_ROOM = 1 << 16  # bytes of a message that later ones get room for too
_PAUSE = 5e-5  # seconds between two looks at whether an exchange is done
PATIENCE = 20.0  # seconds for which a process that fails waits to tell the others


@final
class Group:
    """The processes of an initialised `torch.distributed` process group; None is the default group.

    `weights` is another group of the same processes, where a sharded model gathers its weights: what a failing process
    says must not meet those. `sharded` says that there is such a model.
    Messages of a group that has NCCL alone go through the current GPU, all others through the CPU.
    Raises UserError where no process group is initialised.
    """

    def __init__(self, process_group: Any = None, weights: Any = None) -> None:
        import torch.distributed as dist

        if not dist.is_available() or not dist.is_initialized():
            raise UserError(
                "there is no process group here. Remedy: start with torchrun, and call "
                "torch.distributed.init_process_group first."
            )
        self._dist, self._group = dist, process_group
        self.rank, self.size = dist.get_rank(process_group), dist.get_world_size(process_group)
        self._device = torch.device("cuda" if dist.get_backend(process_group) == "nccl" else "cpu")
        self._room = 64  # bytes of an exchange; it grows to what messages need
        self._held: BaseException | None = None  # arrived during an exchange: raised when that is done
        self._until = math.inf  # when an exchange is given up
        self.given_up = False  # whether one was: it is still on its way
        self.weights, self.sharded = weights, False
        self.restarted = False  # whether these processes stand in the place of others
        self.stop: BaseException | None = None  # a signal that is kept for the end of the step
        self.heard: BaseException | None = None  # the error that all processes know of
        self.exchanges, self.sent_bytes = 0, 0

    @property
    def message_bytes(self) -> int:
        """Bytes that a process sends to each other in a usual exchange, the transport's own not counted."""
        return self._room

    def exchange(self, message: bytes, failed: BaseException | None = None, usual: bool = False) -> list[bytes]:
        """The messages of all processes, in the order of their ranks. Later ones get room for the `usual` ones.

        If `failed` is given here or elsewhere, all processes raise: its own error where it happened, elsewhere one of
        the same class that names the process. Raises RunError when another process is gone.
        """
        code = _FINE if failed is None else _code(failed)
        if failed is not None:
            message = _said(failed)
        found = self._gathered(_HEAD.pack(code, len(message)) + message, usual)
        codes = [_HEAD.unpack_from(each)[0] for each in found]
        told = [each[_HEAD.size :] for each in found]
        worst = max(codes)
        if worst:
            first = codes.index(worst)
            own = failed is not None and first == self.rank
            self.heard = failed if own else _heard(first, worst, told[first])
        held, self._held, self._until = self._held, None, math.inf
        if held is not None and worst < _STOPPED:
            raise held
        if worst:
            assert self.heard is not None
            raise self.heard
        return told

    def exchange_soon(self, failed: BaseException) -> None:
        """Tell all processes of `failed`, as `exchange`; raises it if they do not come for it within PATIENCE seconds.

        For a failure within a forward of a sharded model. Where all fail alike they come at once; otherwise they wait
        in that forward for this process's weights, until they see it go.
        """
        self._until = time.monotonic() + PATIENCE
        try:
            self.exchange(b"", failed, usual=True)
        except TimeoutError:
            raise failed from None

    def share(self, data: bytes) -> bytes:
        """The `data` of process 0, in all processes; what the others give is not read."""
        (size,) = struct.unpack("<Q", self.exchange(struct.pack("<Q", len(data)))[0])
        if not size:
            return b""
        tensor = _tensor(data if self.rank == 0 else bytes(size), self._device)
        self._wait(self._dist.broadcast(tensor, group_src=0, group=self._group, async_op=True))
        self.sent_bytes += size if self.rank == 0 else 0
        return tensor.cpu().numpy().tobytes()

    @contextmanager
    def stopping_together(self) -> Iterator[None]:
        """Within the context a first signal is kept in `stop`: one process that stopped in a forward would leave the
        others waiting for its weights. A second one acts at once.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def keep(number: int, frame: FrameType | None) -> None:
            self.stop = Terminated() if number == signal.SIGTERM else KeyboardInterrupt()
            signal.signal(number, before[signal.Signals(number)])

        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        for number, handler in before.items():
            if callable(handler):  # not where it is ignored, as under nohup
                signal.signal(number, keep)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def farewell(self, error: BaseException) -> BaseException:
        """Tell the others, in their next exchange, that this process leaves. Known errors are not told again.

        Returns the error to end with: that of another process where this one's came of it.
        """
        if error is self.heard:
            return error
        if self.sharded and _code(error) != _LOST:
            return error  # the others may be waiting for this process's weights: they see it go
        if self.weights is not None and not self.sharded:  # so that others who wait for weights fail, and listen
            self._dist.destroy_process_group(self.weights)
            self.weights = None
        self._until = time.monotonic() + PATIENCE
        try:
            self.exchange(b"", error)
        except BaseException as known:
            if _code(error) == _LOST:
                return known
            # Where all fail alike, the first process is the one to speak of it.
            self.heard = error if known is self.heard else None
        return error

    def close(self) -> None:
        """Leave all process groups, but where an exchange was given up: gloo's threads are then held until the others
        go, who may be waiting for this process. Then it must end by `os._exit`.
        """
        if not self.given_up:
            self._dist.destroy_process_group()

    def _gathered(self, own: bytes, usual: bool) -> list[bytes]:
        found = self._all(own, self._room)
        heads = [_HEAD.unpack_from(each) for each in found]
        sizes = [_HEAD.size + size for _, size in heads]
        if max(sizes) > self._room:
            found = self._all(own, max(sizes))
            # What all know: without a failure anywhere all are at the same kind of message.
            if usual and not any(code for code, _ in heads):
                self._room = max(self._room, min(max(sizes), _MOST_ROOM))
        return [each[:size] for each, size in zip(found, sizes, strict=True)]

    def _all(self, own: bytes, room: int) -> list[bytes]:
        sent = _tensor(own[:room].ljust(room, b"\0"), self._device)
        found = [torch.empty_like(sent) for _ in range(self.size)]
        self._wait(self._dist.all_gather(found, sent, group=self._group, async_op=True))
        self.exchanges += 1
        self.sent_bytes += room
        return [each.cpu().numpy().tobytes() for each in found]

    def _wait(self, work: Any) -> None:
        """Until `work` is done, in small sleeps so that signals get through.

        An exchange that is begun must end, or the processes lose step: a first signal is kept for later, a second one
        or a long wait ends it.
        """
        while True:
            try:
                while not work.is_completed():
                    if time.monotonic() > self._until:
                        raise self._held or TimeoutError
                    time.sleep(_PAUSE)
                break
            except BaseException as stop:
                if self._until < math.inf:
                    self.given_up = True
                    raise
                self._held, self._until = stop, time.monotonic() + PATIENCE
        try:
            work.wait()
        except RuntimeError as error:
            if self._held is not None:
                raise self._held from None
            raise RunError(
                f"another process of this run is gone ({str(error).strip().splitlines()[0]}). Remedy: its own output "
                "says why; `zotune resume` under torchrun continues, and so does torchrun itself with --max-restarts."
            ) from None


def _tensor(data: bytes, device: torch.device) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).to(device)


def _code(error: BaseException) -> int:
    if isinstance(error, NonFiniteLoss):
        return _LEFT_OUT
    if isinstance(error, RuntimeError) and any(name in str(error) for name in ("gloo", "NCCL")):
        return _LOST
    return _FAILED if isinstance(error, Exception) else _STOPPED


def _said(error: BaseException) -> bytes:
    return json.dumps({"kind": type(error).__name__, "text": str(error)[:4000]}).encode()


def _heard(rank: int, code: int, message: bytes) -> BaseException:
    """Another process's error: of its own class where that is one of zotune's."""
    told = json.loads(message)
    kind, text = str(told["kind"]), str(told["text"])
    if code == _STOPPED:
        return KeyboardInterrupt() if kind == "KeyboardInterrupt" else Terminated()
    own = getattr(errors, kind, None)
    if isinstance(own, type) and issubclass(own, UserError):
        return own(f"process {rank}: {text}")
    said = (text.strip() or kind).splitlines()[0].rstrip(".")
    return RunError(
        f"process {rank} failed: {kind}: {said}. Remedy: its own output says more; `zotune resume` under torchrun "
        "continues the run."
    )
