"""What a forward pass would take, found by running it on the meta device: no weight is read, nothing is computed.

`Meter` sees every operation that torch dispatches. It follows which memory is alive, and lists what each operation
costs: floating-point operations of matrix products, bytes that all others read and write.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from zotune.direction import Direction, Factors, Target
from zotune.errors import UserError
from zotune.low_rank import LowRank
from zotune.noise import Key


@final
class Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While open: `peak`, the most bytes of new tensors alive at once; `products` and `passes`, what was computed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self.products: list[tuple[float, float, int, float]] = []  # (flops, bytes, rows of the result, times)
        self.passes: list[tuple[float, float]] = []  # (bytes read and written, times)
        self.times = 1.0  # how many of its kind an operation stands for
        self._known: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._attention = _FusedAttention(self)

    def __enter__(self) -> Meter:
        super().__enter__()  # type: ignore[no-untyped-call]
        self._attention.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        self._attention.__exit__(*error)  # type: ignore[no-untyped-call]
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return _answer(args[0])
        flops_of = flop_registry.get(func._overloadpacket)
        if flops_of is None and func is not torch.ops.prim.device.default:
            # Without the function mode, which would call the whole operation again instead of its parts.
            with _Parts(self), torch._C.DisableTorchFunction():
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        if func is torch.ops.aten._unique2.default:  # its size depends on values: at most all are different
            out: Any = (args[0].new_empty(args[0].numel()), torch.empty_like(args[0]), args[0].new_empty(0))
        else:
            out = func(*args, **kwargs)
        read = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        for each in read:  # what was there before is not ours: weights, the batch
            self._known.setdefault(each.untyped_storage(), 0)
        made = [each for each in tree_leaves(out) if isinstance(each, Tensor)]
        fresh = [each for each in made if self._keep(each)]
        moved = float(sum(map(_bytes, (*read, *fresh))))
        if flops_of is not None:
            self.count(float(flops_of(*args, **kwargs, out_val=out)), moved, made[0])
        elif fresh or func._schema.is_mutable:  # a view moves nothing
            self.passes.append((moved, self.times))
        return out

    def count(self, flops: float, moved: float, out: Tensor) -> None:
        """Note a matrix product, or what is made of them."""
        self.products.append((flops, moved, out.numel() // max(out.shape[-1], 1), self.times))

    def _keep(self, tensor: Tensor) -> bool:
        """Follow the memory of a tensor until it is freed; False for memory that is known already."""
        storage = tensor.untyped_storage()
        if storage in self._known:
            return False
        size = storage.nbytes()
        self._known[storage] = size
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._drop, size)
        return True

    def _drop(self, size: int) -> None:
        self.live -= size


@final
class _Parts(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Passes on to a meter: a mode is switched off while it handles an operation, but its parts must be seen too."""

    def __init__(self, meter: Meter) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._meter = meter

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self._meter.__torch_dispatch__(func, types, args, kwargs)


@final
class _FusedAttention(TorchFunctionMode):
    """Attention as real devices compute it, without a matrix of scores: the meta device would make that matrix."""

    def __init__(self, meter: Meter) -> None:
        super().__init__()
        self._meter = meter

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query, key, value = args[:3] if len(args) >= 3 else (kwargs["query"], kwargs["key"], kwargs["value"])
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        flops = 2.0 * math.prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1])
        self._meter.count(flops, float(sum(map(_bytes, (query, key, value, out)))), out)
        return out


@final
class Priced(Direction):
    """Stands for a direction on the meta device: draws nothing, and counts what would be drawn.

    The compiled kernels perturb a slice in one pass, without scratch of their own: so does this.
    """

    def __init__(self, real: Direction) -> None:
        self._real = real
        self.drawn, self.times = 0.0, 1.0  # numbers; how many of its kind a draw stands for

    def block(self, target: Target, key: Key, start: int, stop: int) -> Tensor:
        self.drawn += self.times * (stop - start)
        return target.data.new_empty(stop - start, dtype=torch.float32)

    def rows(self, target: Target, key: Key, rows: Tensor) -> Tensor:
        columns = target.matrix_shape[1]
        self.drawn += self.times * rows.numel() * columns
        return target.data.new_empty(rows.numel(), columns, dtype=torch.float32)

    def factors(self, target: Target, key: Key) -> Factors | None:
        if not isinstance(self._real, LowRank) or target.data.dim() < 2:
            return None
        rows, columns = target.matrix_shape
        self.drawn += self.times * (rows + columns) * self._real.rank
        thin = [target.data.new_empty(count, self._real.rank) for count in (rows, columns)]
        return Factors(thin[0], thin[1], 1.0)

    def add(self, target: Target, key: Key, start: int, w: Tensor, scales: Sequence[float]) -> list[Tensor]:
        self.drawn += self.times * w.numel()
        return [torch.empty_like(w) for _ in scales]


def _answer(tensor: Tensor) -> bool:
    """Models ask whether all positions follow each other, or whether nothing is masked: yes, as in a plain batch."""
    if tensor.dtype == torch.bool:
        return True
    raise UserError(
        "the model computes with values of its activations on the host, so it cannot be planned without them. "
        "Remedy: start `zotune train` with --steps 5 and look at the memory that it says."
    )


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
