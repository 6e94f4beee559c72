"""A recording of operations on tensors that stay where they are: played again, it reads and writes the same places.

Python runs once, at the recording: whatever it computes by itself (a number of this step, a choice by a value) is in
the recording for good. So operations whose result the host reads are refused.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Run = Callable[[], Tensor]


# Operations that give a number of Python, of those that have no tag for it.
_READS = ("item", "is_nonzero", "equal", "allclose")


class Unrecordable(Exception):
    """A forward that cannot be recorded; its message says which operation is why."""


class Graph(ABC):
    """One recording. Abstract: `record` and `play`."""

    @abstractmethod
    def record(self, run: Run) -> Tensor:
        """Record what `run` does and give its result, a place whose content is that of the latest `play`.

        The content is not valid before the first `play`. Raises Unrecordable, or what torch raises while capturing.
        """

    @abstractmethod
    def play(self) -> None:
        """Do it again, with what lies in the places now."""


@final
class CudaGraph(Graph):
    """CUDA's own: one launch for all kernels. Graphs with the same `pool` share scratch memory, so each result must be
    read or copied before another is played.
    """

    def __init__(self, pool: Any, stream: Any) -> None:
        self._pool, self._stream = pool, stream
        self._graph: Any = torch.cuda.CUDAGraph()

    def record(self, run: Run) -> Tensor:
        # Once beside the recording: libraries and compilers set themselves up at a first call, which no graph may hold.
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            run()
        torch.cuda.current_stream().wait_stream(self._stream)
        # Other threads (trackers, loaders) may go on with their own work meanwhile.
        with torch.cuda.graph(self._graph, self._pool, self._stream, capture_error_mode="thread_local"):
            return run()

    def play(self) -> None:
        self._graph.replay()


@final
class Tape(Graph):
    """The plain twin, on any device: the operations one by one, on the tensors of the recording. It saves nothing."""

    def __init__(self) -> None:
        self._operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]] = []

    def record(self, run: Run) -> Tensor:
        before = torch.get_rng_state()
        with _Listening(self._operations):
            out = run()
        if not torch.equal(before, torch.get_rng_state()):
            raise Unrecordable("the forward draws from torch's own generator")
        return out

    def play(self) -> None:
        for func, args, kwargs, places in self._operations:
            found = func(*args, **kwargs)
            if places:  # else it wrote by itself
                for place, value in zip(places, _tensors(found), strict=True):
                    place.copy_(value)


@final
class _Listening(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Lists operations with their results; what is a view of another place needs no second look."""

    def __init__(self, operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._operations = operations

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tags = torch.Tag
        name = func.overloadpacket.__name__
        waits = {tags.data_dependent_output, tags.dynamic_output_shape} & set(func.tags) or name in _READS
        by_number = func is torch.ops.aten.index.Tensor and all(t.dtype is not torch.bool for t in _tensors(args[1]))
        if waits and not by_number:
            raise Unrecordable(f"{name} makes the host wait for a value")
        out = func(*args, **kwargs)
        results = _tensors(out)
        written = any(each.alias_info is not None and each.alias_info.is_write for each in func._schema.returns)
        given = {tensor.untyped_storage().data_ptr() for tensor in _tensors([args, list(kwargs.values())])}
        # `reshape` and its like give a view where they can, and a copy elsewhere.
        views = results and all(tensor.untyped_storage().data_ptr() in given for tensor in results)
        if written or not views:
            self._operations.append((func, args, kwargs, [] if written else results))
        return out


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in _tensors(item)]
    return []
