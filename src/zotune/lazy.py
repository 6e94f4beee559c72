"""The lazy perturbed parameter: a tensor subclass that stands for `W + s_l * Z_l`, one `l` per lane.

Modules keep their own code. When an operation meets the stand-in, a rule computes that operation lane by lane:
activations carry L lanes stacked along dim 0, lane l of a weight is `W + s_l Z_l`, and the perturbed weight lives for
that operation only. With one lane every operation is right by construction (the weight is made, then used). With
several lanes an operation that has no rule raises LaneUnsupported, and the caller evaluates one lane at a time.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor

from zotune.direction import Direction, Factors, Signed, Target
from zotune.errors import UserError
from zotune.estimate import Point
from zotune.noise import Key

SHORT = (torch.bfloat16, torch.float16)

Rule = Callable[["Lanes", Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


class LaneUnsupported(Exception):
    """An operation cannot be computed for several lanes at once; its message names the operation and the parameter."""


@final
@dataclass
class Lanes:
    """What all stand-ins of one evaluation share: the points (one per lane) and the examples in one lane."""

    direction: Direction
    points: Sequence[Point]
    rows: int
    rules: Mapping[Any, Rule] = field(default_factory=dict)  # operation -> how to compute it lane by lane
    expected: set[str] = field(default_factory=set)  # the parameters that were replaced
    touched: set[str] = field(default_factory=set)  # those that an operation has met
    trace: list[str] = field(default_factory=list)  # how activations were read, to compare with a proven forward
    tokens: frozenset[str] = frozenset()  # tables that are read by the ids of tokens, which may differ between lanes
    shown: list[Tensor] = field(default_factory=list)  # weights whose address was asked for: they stay to be read there
    copies: int = 0  # how often the batch is stacked: fewer than lanes where each example has its own; 0: once a lane
    quiet: bool = False  # whether nothing may make the host wait: on a GPU, and in a recording
    plan: Sequence[bool] = ()  # what choices by values came to in another forward
    choices: list[bool] = field(default_factory=list)  # what they came to in this one
    doubts: list[Tensor] = field(default_factory=list)  # whether choices that were taken from the plan are wrong

    @property
    def count(self) -> int:
        """How many lanes ride in this forward."""
        return len(self.points)

    def split(self, x: Tensor, what: str) -> tuple[Tensor, ...]:
        """The lanes of an activation, cut along dim 0."""
        if self.count == 1:
            return (x,)
        if not self.stacked(x):
            raise LaneUnsupported(f"{what} meets an activation of shape {tuple(x.shape)}, not stacked by example")
        self.trace.append(what)
        return x.chunk(self.count)

    def choose(self, found: Tensor) -> bool:
        """A choice by a value: as planned, with a doubt to be looked at when the losses are; else by waiting for it."""
        number = len(self.choices)
        if number < len(self.plan):
            self.doubts.append(found != self.plan[number])
            self.choices.append(self.plan[number])
        else:
            self.choices.append(bool(found))
        return self.choices[-1]

    def doubted(self) -> Tensor | None:
        """Whether any choice that was taken from the plan is wrong, () bool on the device; None where there is none."""
        return torch.stack(self.doubts).any() if self.doubts else None

    def stacked(self, x: Tensor) -> bool:
        """Whether dim 0 of an activation can be examples, lane after lane."""
        return x.dim() > 0 and x.shape[0] % (self.count * self.rows) == 0

    def by_key(self) -> Iterator[tuple[int, int]]:
        """Runs of lanes (first, last + 1) that share a key, so that their noise is drawn once."""
        first = 0
        for lane in range(1, self.count + 1):
            if lane == self.count or self.points[lane].key != self.points[first].key:
                yield first, lane
                first = lane


class LaneTensor(torch.Tensor):
    """A parameter (or something computed from one) that has a value in each lane. Abstract."""

    lanes: Lanes
    known_as: str  # the parameter's canonical name (Tensor.name is taken)
    _is_param = True  # nn.Parameter's instance check: modules may ask whether their weight is one

    @abstractmethod
    def per_lane(self) -> list[Tensor]:
        """The plain tensor of each lane."""

    def wide(self) -> list[Tensor]:
        """As `per_lane`; of a vector with 16 bits the values before they are rounded, float32.

        A gain near 1 lies 2**-7 from its neighbours in bfloat16: rounded, it would not feel a radius of 1e-3.
        """
        return self.per_lane()

    def has_wide(self) -> bool:
        """Whether `wide` gives other values than `per_lane`."""
        return False

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        return _apply(func, args, kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # Reached only by code that bypasses __torch_function__ (C++ callers); detach is how torch wraps its own calls.
        return _apply(func, args, kwargs or {})


@final
class Perturbed(LaneTensor):
    """The stand-in that a module finds in place of its parameter."""

    target: Target

    @staticmethod
    def __new__(cls, target: Target, lanes: Lanes) -> Perturbed:
        self: Perturbed = _wrapper(cls, target.data)
        self.target, self.lanes, self.known_as = target, lanes, target.name
        return self

    def per_lane(self) -> list[Tensor]:
        data = self.target.data
        return [flat.view(data.shape) for flat in self.slice(0, data.numel())]

    def has_wide(self) -> bool:
        return self.target.data.dim() < 2 and self.target.data.dtype in SHORT

    def wide(self) -> list[Tensor]:
        data = self.target.data
        if not self.has_wide():
            return self.per_lane()
        return [flat.view(data.shape) for flat in self._at_points(self.target.value(0, data.numel()).float(), 0)]

    def slice(self, start: int, stop: int) -> list[Tensor]:
        """Elements `start:stop` of the flattened weight in each lane, (stop - start,) each; whole rows."""
        return [each.to(self.target.data.dtype) for each in self._at_points(self.target.value(start, stop), start)]

    def _at_points(self, flat: Tensor, start: int) -> list[Tensor]:
        """`flat`, the elements from `start` of the unperturbed weight, moved to each lane's point."""
        points, out = self.lanes.points, []
        for first, last in self.lanes.by_key():
            scales = [point.scale for point in points[first:last]]
            moved = iter(self.moved(points[first].key, start, flat, [scale for scale in scales if scale]))
            out += [next(moved) if scale else flat for scale in scales]
        return out

    def moved(self, key: Key, start: int, flat: Tensor, scales: Sequence[float]) -> list[Tensor]:
        """`flat + scale * z` for each scale; nothing is drawn where there is none, or where z is zero."""
        if not scales or not self.lanes.direction.active(self.target, key):
            return [flat] * len(scales)
        return self.lanes.direction.add(self.target, key, start, flat, scales)

    def factors(self) -> list[Factors] | None:
        """The low-rank form of each lane's direction, or None."""
        found = [self.lanes.direction.factors(self.target, point.key) for point in self.lanes.points]
        return [each for each in found if each is not None] if None not in found else None

    def signed(self) -> list[Signed] | None:
        """The signed form of each lane's direction, if all of them share one base."""
        found = [self.lanes.direction.signed(self.target, point.key) for point in self.lanes.points]
        given = [each for each in found if each is not None]
        shared = len(given) == len(found) and all((g.base, g.key) == (given[0].base, given[0].key) for g in given)
        return given if shared else None


@final
class Derived(LaneTensor):
    """The result of an operation on stand-ins alone (a cast, a transpose, `1 + weight`): one plain tensor per lane."""

    parts: list[Tensor]

    @staticmethod
    def __new__(cls, parts: list[Tensor], source: LaneTensor, dtype: torch.dtype | None = None) -> Derived:
        """`dtype`: what the model takes it for, where the parts are wider."""
        self: Derived = _wrapper(cls, parts[0], dtype)
        self.parts, self.lanes, self.known_as = parts, source.lanes, source.known_as
        return self

    def per_lane(self) -> list[Tensor]:
        return [part.to(self.dtype) for part in self.parts]

    def wide(self) -> list[Tensor]:
        return self.parts

    def has_wide(self) -> bool:
        return self.parts[0].dtype != self.dtype


def _wrapper(cls: type[LaneTensor], like: Tensor, dtype: torch.dtype | None = None) -> Any:
    return torch.Tensor._make_wrapper_subclass(
        cls, like.shape, strides=like.stride(), dtype=dtype or like.dtype, device=like.device, requires_grad=False
    )


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors inside nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)


def take(value: Any, lane: int) -> Any:
    """`value` with every stand-in inside replaced by its plain tensor in `lane`."""
    if isinstance(value, LaneTensor):
        return value.per_lane()[lane]
    if type(value) in (list, tuple):
        return type(value)(take(item, lane) for item in value)
    return value


def take_each(value: Any, count: int, wide: bool = False) -> list[Any]:
    """`take(value, lane)` for each of `count` lanes; what stands for a parameter is computed once for all of them.

    wide: as `LaneTensor.wide`.
    """
    if isinstance(value, LaneTensor):
        return value.wide() if wide else value.per_lane()
    if type(value) in (list, tuple):
        parts = [take_each(item, count, wide) for item in value]
        return [type(value)(part[lane] for part in parts) for lane in range(count)]
    if type(value) is dict:
        columns = {key: take_each(item, count, wide) for key, item in value.items()}
        return [{key: column[lane] for key, column in columns.items()} for lane in range(count)]
    return [value] * count


def name_of(func: Callable[..., Any]) -> str:
    """An operation's name for messages."""
    return getattr(func, "__name__", str(func))


def _apply(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    found = list(tensors_in((args, kwargs)))
    stand_ins = [tensor for tensor in found if isinstance(tensor, LaneTensor)]
    lanes, name = stand_ins[0].lanes, stand_ins[0].known_as
    lanes.touched.update(tensor.known_as for tensor in stand_ins)
    label = name_of(func)
    if writes(func) and isinstance(next(iter((*args, *kwargs.values())), None), LaneTensor):
        raise UserError(
            f"the model writes its parameter {name} during the forward pass ({label}). "
            "Remedy: leave it out of the scope."
        )
    if func in _MEMORY and lanes.count == 1:
        (weight,) = args[0].per_lane()
        lanes.shown.append(weight)
        return func(weight, *args[1:], **kwargs)
    rule = lanes.rules.get(func)
    if rule is not None:
        return rule(lanes, func, args, kwargs)
    if len(stand_ins) == len(found) and (lanes.count > 1 or is_wide(args, kwargs)):
        return map_lanes(func, args, kwargs, stand_ins[0])
    if lanes.count == 1:
        return alone(func, args, kwargs)
    raise LaneUnsupported(f"{label} on {name} has no lane rule")


def writes(func: Callable[..., Any]) -> bool:
    """Whether an operation writes into its first argument: `add_`, `x += y`, `x[i] = y`."""
    label = name_of(func)
    return label in _WRITING or (label.endswith("_") and not label.endswith("__"))


def alone(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An operation for one lane: the perturbed weights are made, then used."""
    return func(*take(args, 0), **{key: take(value, 0) for key, value in kwargs.items()})


def bind(names: Sequence[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """The arguments of these names, given by position or by keyword; None for what was not given."""
    return tuple(args[i] if i < len(args) else kwargs.get(name) for i, name in enumerate(names))


def join(parts: Sequence[Tensor]) -> Tensor:
    """The lanes of an activation, put together along dim 0 again."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def map_lanes(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], source: LaneTensor) -> Any:
    """An operation on stand-ins alone: lane by lane, the result a stand-in again."""
    count = source.lanes.count
    known = alone(func, args, kwargs) if is_wide(args, kwargs) else None  # what the model will take the result for
    wide = isinstance(known, Tensor) and known.is_floating_point()
    calls = zip(take_each(args, count, wide), take_each(kwargs, count, wide), strict=True)
    if func in _CASTS and isinstance(known, Tensor) and known.dtype in SHORT and args[0].has_wide():
        return Derived(args[0].wide(), source, known.dtype)  # rounded where it meets an activation
    results = [func(*own, **named) for own, named in calls]
    if isinstance(known, Tensor) and wide:
        return Derived(results, source, known.dtype)
    return _wrap(results, func, source)


def is_wide(*values: Any) -> bool:
    """Whether a stand-in inside has values with more bits than the model takes it for."""
    return any(isinstance(t, LaneTensor) and t.has_wide() for t in tensors_in(values))


def _wrap(results: list[Any], func: Callable[..., Any], source: LaneTensor) -> Any:
    if isinstance(results[0], Tensor):
        return Derived(results, source)
    if isinstance(results[0], (list, tuple)):
        return type(results[0])(_wrap(list(parts), func, source) for parts in zip(*results, strict=True))
    if all(result == results[0] for result in results):
        return results[0]
    raise LaneUnsupported(f"{name_of(func)} on {source.known_as} gives a different Python value in each lane")


# Written with two underscores at the end, unlike torch's other operations in place.
_WRITING = frozenset(f"__i{name}__" for name in "add sub mul truediv floordiv mod pow and or xor lshift rshift".split())
_WRITING |= {"__setitem__"}
_T = torch.Tensor
_CASTS = frozenset([_T.to, _T.type_as, _T.type, _T.bfloat16, _T.half])
_MEMORY = frozenset([_T.data_ptr, _T.untyped_storage])
_PROPERTIES = """
    shape dtype device layout ndim requires_grad is_cuda is_cpu is_mps is_xpu is_meta is_sparse is_quantized is_nested
    is_leaf itemsize nbytes grad grad_fn
""".split()
METADATA = frozenset(
    [getattr(_T, name).__get__ for name in _PROPERTIES]
    + [_T.size, _T.dim, _T.numel, _T.nelement, _T.stride, _T.is_contiguous, _T.is_floating_point, _T.is_complex]
    + [
        _T.element_size,
        _T.ndimension,
        _T.get_device,
        _T.storage_offset,
        _T.__hash__,
        torch.is_floating_point,
        torch.numel,
    ]
)
