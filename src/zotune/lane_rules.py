"""How operations that mix activations and perturbed parameters are computed, lane by lane.

One rule per kind of operation: linear layers (large ones a block of rows at a time, low-rank ones without making the
weight), embeddings (`lane_lookup.py`), attention with a learned bias, elementwise operations, and everything that
treats examples independently. `RULES` is the table that `perturb.py` hands to the stand-ins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zotune.lane_lookup import embedding
from zotune.lane_products import Adder, adder, block_of
from zotune.lazy import (
    SHORT,
    Lanes,
    LaneTensor,
    LaneUnsupported,
    Perturbed,
    Rule,
    alone,
    bind,
    is_wide,
    join,
    map_lanes,
    name_of,
    take_each,
    tensors_in,
    writes,
)
from zotune.quantised.bank import low_rank_term


def _lane_values(value: Any, lanes: Lanes) -> list[Any]:
    return value.per_lane() if isinstance(value, LaneTensor) else [value] * lanes.count


def _add_biases(lanes: Lanes, y: Tensor, bias: LaneTensor) -> Tensor:
    """Each lane's bias added to its part, in place; one with more bits than `y` is added before the sum is rounded."""
    for part, lane_bias in zip(y.chunk(lanes.count), bias.wide(), strict=True):
        part += lane_bias
    return y


def _linear(lanes: Lanes, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    x, weight, bias = bind(("input", "weight", "bias"), args, kwargs)
    if isinstance(x, LaneTensor):
        if lanes.count > 1:
            raise LaneUnsupported(f"linear takes {x.known_as} as its input")
        result: Tensor = alone(func, args, kwargs)
        return result
    # One matrix product: a slice of an activation (the last token) would otherwise be multiplied row by row.
    x = x.contiguous()
    inputs = lanes.split(x, "linear")
    add = adder(lanes, weight)
    if add is not None:
        y: Tensor = F.linear(x, weight.target.data, None if isinstance(bias, LaneTensor) else bias)
        add(y, x, False)
        return _add_biases(lanes, y, bias) if isinstance(bias, LaneTensor) else y
    if is_wide(bias):
        return _add_biases(lanes, _linear(lanes, func, (x, weight), {}), bias)
    biases = _lane_values(bias, lanes)
    if not isinstance(weight, Perturbed) or weight.numel() <= block_of(weight.device):
        weights = _lane_values(weight, lanes)
        return join([F.linear(i, w, b) for i, w, b in zip(inputs, weights, biases, strict=True)])
    rows, columns = weight.target.matrix_shape
    y = x.new_empty(*x.shape[:-1], rows)
    outputs = lanes.split(y, "linear")
    for start, stop in weight.target.slices(block_of(weight.device)):
        first, last = start // columns, stop // columns
        flats = weight.slice(start, stop)
        for out, i, flat, b in zip(outputs, inputs, flats, biases, strict=True):
            out[..., first:last] = F.linear(i, flat.view(last - first, columns), None if b is None else b[first:last])
    return y


def _low_rank_term(lanes: Lanes, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """What a bank's parameter adds: its low-rank terms alone, since its own number is zero."""
    x, weight = args
    lanes.split(x, "bank")
    y: Tensor = x.new_zeros(*x.shape[:-1], weight.shape[0])
    add, pending = adder(lanes, weight), weight.target.pending
    if add is not None:
        add(y, x, False)
    elif pending is not None:  # at rest in this step
        y += (x @ pending.v.to(x.dtype) * pending.scale) @ pending.u.to(x.dtype).t()
    return y


def _matmul(lanes: Lanes, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """`x @ w`, the activation first."""
    add = _second_adder(lanes, args, kwargs) if len(args) == 2 else None
    if add is None:
        result: Tensor = _chunked(0)(lanes, func, args, kwargs)
        return result
    return _thin_matmul(lanes, name_of(func), add, *args)


def _addmm(lanes: Lanes, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """`bias + x @ w` (GPT-2's linear layer)."""
    add = _second_adder(lanes, args[1:], kwargs) if len(args) == 3 else None
    if add is None and not (is_wide(args[0]) and len(args) == 3 and not kwargs):
        result: Tensor = _chunked(1)(lanes, func, args, kwargs)
        return result
    y = _matmul(lanes, torch.mm, args[1:], {}) if add is None else _thin_matmul(lanes, name_of(func), add, *args[1:])
    if isinstance(args[0], LaneTensor):
        return _add_biases(lanes, y, args[0])
    y += args[0]
    return y


def _second_adder(lanes: Lanes, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Adder | None:
    """`adder` of the second factor of `x @ w`, where the short way through it holds."""
    x, weight = args
    return None if kwargs or isinstance(x, LaneTensor) or x.dim() < 2 else adder(lanes, weight)


def _thin_matmul(lanes: Lanes, what: str, add: Adder, x: Tensor, weight: Perturbed) -> Tensor:
    lanes.split(x, what)
    y = torch.matmul(x, weight.target.data)
    add(y, x, True)
    return y


def _call_each(
    lanes: Lanes,
    func: Callable[..., Any],
    columns: Sequence[Sequence[Any]],
    kwargs: dict[str, Any],
    dtype: torch.dtype | None = None,
) -> list[Any]:
    """One call for each lane; `columns` holds each argument's values, lane by lane. `dtype`: what results are rounded
    to, where parameters have more bits than the model knows of.
    """
    named = take_each(kwargs, lanes.count, dtype is not None)
    results = [func(*own, **named[lane]) for lane, own in enumerate(zip(*columns, strict=True))]
    return results if dtype is None else [result.to(dtype) for result in results]


def _known_dtype(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.dtype | None:
    """Of an operation on parameters that have more bits than the model knows of: the dtype that it expects of it."""
    if not is_wide(args, kwargs):
        return None
    return reduce(torch.promote_types, [t.dtype for t in tensors_in((args, kwargs)) if t.dim()])


def _widened(value: Any) -> Any:
    """Plain tensors of 16 bits in float32, stand-ins as they are."""
    if isinstance(value, Tensor) and not isinstance(value, LaneTensor) and value.dtype in SHORT:
        return value.to(torch.float32)
    return value


def _chunked(position: int, wide: bool = False) -> Callable[..., Any]:
    """The rule of an operation that treats examples independently: cut the activation, call per lane, join.

    wide: in float32 where a parameter has more bits than the model knows of, rounded at the end as it rounds by itself.
    """

    def rule(lanes: Lanes, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        known = _known_dtype(args, kwargs) if wide else None
        activation = args[position] if len(args) > position else None
        if lanes.count == 1 and (known is None or activation is None or isinstance(activation, LaneTensor)):
            return alone(func, args, kwargs)
        if activation is None:
            raise LaneUnsupported(f"{name_of(func)} takes its input by keyword")
        if known is not None:
            args, kwargs = tuple(map(_widened, args)), {key: _widened(value) for key, value in kwargs.items()}
            activation = args[position]
        plain = [t for t in tensors_in((args, kwargs)) if not isinstance(t, LaneTensor)]
        if isinstance(activation, LaneTensor):
            if plain:
                raise LaneUnsupported(f"{name_of(func)} takes {activation.known_as} as its input")
            return map_lanes(func, args, kwargs, activation)
        cut = lanes.split(activation, name_of(func))
        rest = [take_each(arg, lanes.count, known is not None) for arg in args]
        columns = [cut if i == position else values for i, values in enumerate(rest)]
        return join(_call_each(lanes, func, columns, kwargs, known))

    return rule


def _elementwise(lanes: Lanes, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`x * w`, `w + x`, `where(x, w, 0)`: parameters broadcast over the examples of the activations."""
    known = _known_dtype(args, kwargs)
    if lanes.count == 1 and known is None:
        return alone(func, args, kwargs)
    found = [t for t in tensors_in((args, kwargs)) if t.dim()]
    if lanes.count == 1 and any(not isinstance(t, LaneTensor) for t in tensors_in((args, kwargs))):
        return _call_each(lanes, func, [take_each(arg, 1, True) for arg in args], kwargs, known)[0]
    lead = max((t.dim() for t in found), default=0)
    cut = [
        i
        for i, t in enumerate(args)
        if isinstance(t, Tensor) and not isinstance(t, LaneTensor) and t.dim() == lead > 0 and t.shape[0] != 1
    ]
    for t in found:
        if cut and isinstance(t, LaneTensor) and t.dim() == lead and t.shape[0] != 1:
            raise LaneUnsupported(f"{name_of(func)} on {t.known_as}: which dimension holds the examples is unclear")
    if not cut:
        source = next(t for t in tensors_in((args, kwargs)) if isinstance(t, LaneTensor))
        if writes(func):
            raise LaneUnsupported(f"{name_of(func)} of {source.known_as} into a tensor that all lanes share")
        return map_lanes(func, args, kwargs, source)
    wide = known is not None
    columns = [
        lanes.split(arg, name_of(func)) if i in cut else take_each(arg, lanes.count, wide) for i, arg in enumerate(args)
    ]
    parts = _call_each(lanes, func, columns, kwargs, known)
    return args[0] if writes(func) else join(parts)


def _cat(lanes: Lanes, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`cat((w, x), 1)`: a parameter repeated for every example (virtual tokens) beside activations."""
    if lanes.count == 1:
        return alone(func, args, kwargs)
    tensors, dim = bind(("tensors", "dim"), args, kwargs)
    source = next(t for t in tensors if isinstance(t, LaneTensor))
    if all(isinstance(t, LaneTensor) for t in tensors):
        return map_lanes(func, args, kwargs, source)
    if not (dim or 0) % source.dim() or not lanes.stacked(source):
        raise LaneUnsupported(f"cat on {source.known_as}: which dimension holds the examples is unclear")
    columns = [
        [value.chunk(lanes.count)[lane] for lane, value in enumerate(t.per_lane())]
        if isinstance(t, LaneTensor)
        else lanes.split(t, "cat")
        for t in tensors
    ]
    return join([torch.cat(parts, dim) for parts in zip(*columns, strict=True)])


def _attention(lanes: Lanes, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Attention whose mask carries a learned bias (T5): queries, keys and values are cut, the mask is per lane."""
    query, key, value = (bind(("query", "key", "value"), args, kwargs)[i] for i in range(3))
    if lanes.count == 1:
        result: Tensor = alone(func, args, kwargs)
        return result
    if any(isinstance(x, LaneTensor) for x in (query, key, value)):
        raise LaneUnsupported(f"attention takes {next(tensors_in(args)).shape} of a parameter as its input")
    rest = {k: v for k, v in kwargs.items() if k not in ("query", "key", "value")}
    inputs = [lanes.split(x, "attention") for x in (query, key, value)]
    return join(_call_each(lanes, func, [*inputs, *(take_each(arg, lanes.count) for arg in args[3:])], rest))


_T = torch.Tensor
RULES: dict[Any, Rule] = {
    F.linear: _linear,
    low_rank_term: _low_rank_term,
    F.embedding: embedding,
    torch.addmm: _addmm,
    torch.cat: _cat,
    F.scaled_dot_product_attention: _attention,
    **{f: _matmul for f in (torch.matmul, _T.matmul, _T.__matmul__, torch.mm, _T.mm)},
    **{f: _chunked(0, wide=True) for f in (F.layer_norm, F.rms_norm, torch.rms_norm, torch.layer_norm, F.group_norm)},
    **{f: _chunked(0) for f in (F.batch_norm, F.prelu)},
    **{f: _chunked(0) for f in (F.conv1d, F.conv2d, F.conv3d)},
    **{
        f: _elementwise
        for f in (torch.add, torch.mul, torch.sub, torch.div, torch.where, _T.add, _T.mul, _T.sub, _T.div)
    },
    **{f: _elementwise for f in (_T.__add__, _T.__radd__, _T.__mul__, _T.__rmul__, _T.__sub__, _T.__rsub__)},
    **{
        f: _elementwise
        for f in (
            _T.__truediv__,
            _T.__rtruediv__,
            _T.add_,
            _T.mul_,
            _T.sub_,
            _T.__iadd__,
            _T.__imul__,
            _T.__isub__,
        )
    },
}
