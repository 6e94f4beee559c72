"""Layers below the scope run once per batch: their activations do not depend on the probe.

Which layers those are is found by evidence, not by names: in one evaluation, every block that finishes before any
parameter in scope was touched. For such a batch the blocks' last output is captured once; during the probes the lower
blocks are replaced, inside their list, by stand-ins that return it. The capture depends on the batch alone, so it gives
the same bits whether it was kept from an earlier epoch or made anew, and a resumed run follows the same path.

Where a completion is generated that holds for the prompts, which the first forward reads: the stand-ins also give the
cache the keys and values of the lower blocks. The words that follow differ between probes and run through all blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import copy
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from zotune.distributed.sharded import no_gradient, released
from zotune.estimate import Point
from zotune.evaluate import evaluating
from zotune.objective.model_kind import ignores_positions
from zotune.perturb import Perturber
from zotune.scope import blocks
from zotune.scorer import Objective, Within, nothing
from zotune.stacked import asked, batch_rows


@final
class _Stop(Exception):
    """Ends a forward pass once the activations are there."""


@final
@dataclass(frozen=True, slots=True)
class Captured:
    """What the blocks below the scope make of a batch. output: the last one's. cached: what each of them leaves in the
    cache for the words that follow (layers of transformers' DynamicCache); None where no word follows.
    """

    output: Any
    cached: tuple[Any, ...] | None

    @property
    def bytes(self) -> int:
        """Bytes of its tensors."""
        held = [tensor for layer in self.cached or () for tensor in (layer.keys, layer.values)]
        return sum(tensor.numel() * tensor.element_size() for tensor in (*_tensors(self.output), *held))

    def tensors(self) -> list[Tensor]:
        """Those of its output."""
        return list(_tensors(self.output))

    def holding(self, tensors: Sequence[Tensor]) -> Captured:
        """The same with other tensors of the same shapes in its output."""
        left = iter(tensors)
        return Captured(_mapped(self.output, lambda _: next(left)), self.cached)

    def repeated(self, lanes: int, rows: int) -> Captured:
        """That of as many copies of the batch of `rows`, one after another."""
        if lanes == 1:
            return self
        layers = None if self.cached is None else tuple(_stacked(layer, lanes, rows) for layer in self.cached)
        return Captured(_repeat(self.output, lanes, rows), layers)


@final
class _Shortcut(nn.Module):
    """Stands for a lower block: returns the captured output, answers for the block's other attributes.

    In a generation it does so once, for the prompts; later calls are the block's own.
    """

    def __init__(self, block: nn.Module, number: int, captured: Captured) -> None:
        super().__init__()
        object.__setattr__(self, "_block", block)  # not a submodule: the model must not see the block twice
        object.__setattr__(self, "_captured", captured)
        self._number, self._served = number, False

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_block"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        captured = object.__getattribute__(self, "_captured")
        if captured.cached is None:
            return captured.output
        if self._served:
            return object.__getattribute__(self, "_block")(*args, **kwargs)
        self._served = True
        # A copy: each word replaces the layer's tensors by longer ones. The slice also grows a cache that fills up.
        _cache(args, kwargs).layers[self._number : self._number + 1] = [copy(captured.cached[self._number])]
        return captured.output


@final
class Reuse:
    """Captured activations of a model whose scope lies in its top blocks.

    `budget` bytes of them are kept between epochs; batches beyond it are captured again each time they come.
    Without `keep` they are captured each time.
    `depth` is the number of blocks that are skipped, 0 when there are none; `reason` then says why.
    dry: forwards are rehearsed, as the meta device needs it, where no value can be read.
    """

    def __init__(self, perturber: Perturber, budget: int, dry: bool = False, keep: bool = True) -> None:
        self._perturber, self._budget, self._dry, self._keep = perturber, budget, dry, keep
        self._list: nn.ModuleList | None = None
        self._kept: dict[Hashable, Captured] = {}
        self.depth, self.reason = 0, "not prepared"

    @property
    def kept_bytes(self) -> int:
        """Bytes of activations kept now."""
        return sum(captured.bytes for captured in self._kept.values())

    def share(self, other: Reuse) -> None:
        """Keep captures where `other` keeps them: another run on the same base, the same units and the same depth.

        Raises ValueError for another model or depth.
        """
        if (other._perturber.model, other.depth) != (self._perturber.model, self.depth):
            raise ValueError("captures can be shared by runs on one model that skip the same blocks")
        self._kept = other._kept

    def prepare(self, objective: Objective, batch: Any, point: Point) -> None:
        """Find the blocks below the scope with one batch, and prove that skipping them changes no loss."""
        expected = self.locate(objective, batch, point)
        if not self.depth:
            return
        captured = self.capture(objective, batch)
        # Twice from the same capture: a block that writes into its input would spoil it for the second probe.
        for _ in range(2):
            with (
                no_gradient(self._perturber.model),
                self._perturber.at(point, rows=batch_rows(batch) or 1),
                self.replaced(captured),
            ):
                same = torch.equal(self._ask(objective, batch), expected)  # type: ignore[arg-type]
            if not same:
                self.depth, self._list, self.reason = 0, None, "skipping the blocks below the scope changed a loss"
                return
        self.reason = ""

    def locate(self, objective: Objective, batch: Any, point: Point) -> Tensor | None:
        """Find the blocks below the scope: sets `depth`. Returns the losses that were seen on the way, or what tells
        more of the model than they do.

        Nothing is proven yet; on the meta device this is all that can be said.
        """
        model = self._perturber.model
        found = blocks(model)
        if found is None or not self._budget:
            self.reason = "no list of blocks in the model" if found is None else "no memory is set aside for it"
            return None
        layers = found[1]
        finished: list[bool] = []
        caches: list[Any] = []

        def see(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            finished.append(not lanes.touched)
            caches.append(_cache(args, kwargs) if _goes_on(objective) else None)

        at = self._perturber.at(point, rows=batch_rows(batch) or 1, every=True)
        with no_gradient(model), at as lanes:
            hooks = [layer.register_forward_hook(see, with_kwargs=True) for layer in layers]
            try:
                expected = self._ask(objective, batch)
            finally:
                for hook in hooks:
                    hook.remove()
        # Of several forwards the first one decides.
        depth = min(finished.index(False) if False in finished else len(finished), len(layers))
        if not depth:
            self.reason = "parameters in scope are used before or inside the first block"
            return None
        if _goes_on(objective) and ignores_positions(model):
            self.reason = "prompts behind virtual tokens may be read one by one"
            return None
        if _goes_on(objective) and caches[0] is None:
            self.reason = "the model keeps no cache that its blocks could be handed"
            return None
        self.depth, self._list = depth, layers
        return expected

    def within(self, objective: Objective, batch: Any, name: Hashable) -> Callable[[int], AbstractContextManager[None]]:
        """For the optimizer's `within`: forwards of `batch`, known as `name` in every epoch, skip the lower blocks."""
        return nothing if self._list is None else Below(self, objective, batch, name)

    def of(self, objective: Objective, batch: Any, name: Hashable) -> Captured:
        """What was captured of a batch: kept, or captured now and kept where the budget allows."""
        captured = self._kept.get(name)
        if captured is None:
            captured = self.capture(objective, batch)
            if self._keep and self.kept_bytes + captured.bytes <= self._budget:
                self._kept[name] = captured
        return captured

    @contextmanager
    def replaced(self, captured: Captured) -> Iterator[None]:
        """Within the context the lower blocks return what was captured."""
        assert self._list is not None
        saved = [self._list._modules[str(i)] for i in range(self.depth)]
        for i, block in enumerate(saved):
            assert block is not None
            self._list._modules[str(i)] = _Shortcut(block, i, captured)
        try:
            yield
        finally:
            for i, block in enumerate(saved):
                self._list._modules[str(i)] = block

    def capture(self, objective: Objective, batch: Any) -> Captured:
        """The output of the last block below the scope. What lies above is not run."""
        assert self._list is not None
        seen: list[Captured] = []

        def stop(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            cached = tuple(_cache(args, kwargs).layers[: self.depth]) if _goes_on(objective) else None
            seen.append(Captured(output, cached))
            raise _Stop

        model = self._perturber.model
        hook = self._list[self.depth - 1].register_forward_hook(stop, with_kwargs=True)
        try:
            with no_gradient(model), evaluating(model), released(model):
                self._ask(objective, batch)
        except _Stop:
            pass
        finally:
            hook.remove()
        return seen[0]

    def _ask(self, objective: Any, batch: Any) -> Tensor | None:
        """The objective's forwards: what they tell of the model, or nothing where they are rehearsed."""
        if self._dry:
            objective.rehearse(self._perturber.model, batch, lambda count: None)
            return None
        return asked(objective, self._perturber.model, batch, 0)


@final
class Below:
    """Around forwards of one batch: what lies below the scope is taken from what was captured of it."""

    def __init__(self, reuse: Reuse, objective: Objective, batch: Any, name: Hashable) -> None:
        self._reuse, self._asked, self._rows = reuse, (objective, batch, name), batch_rows(batch) or 1
        self._captured: Captured | None = None  # beyond the budget it lives as long as the forwards of this batch

    @property
    def captured(self) -> Captured:
        """What the blocks below the scope make of the batch."""
        if self._captured is None:
            self._captured = self._reuse.of(*self._asked)
        return self._captured

    def of(self, batch: Any) -> Below:
        """The same of another batch, which is not kept."""
        other = Below(self._reuse, self._asked[0], batch, None)
        other._captured = self._reuse.capture(self._asked[0], batch)
        return other

    def __call__(self, lanes: int) -> AbstractContextManager[None]:
        return self.taking(self.captured)(lanes)

    def taking(self, captured: Captured) -> Within:
        """The same with another capture."""
        return lambda lanes: self._reuse.replaced(captured.repeated(lanes, self._rows))


def _goes_on(objective: Objective) -> bool:
    return bool(getattr(objective, "goes_on", False))


def _cache(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The cache of keys and values among a block's arguments; None where there is no such, or of another kind."""
    from transformers import DynamicCache

    return next((each for each in (*args, *kwargs.values()) if isinstance(each, DynamicCache)), None)


def _stacked(layer: Any, lanes: int, rows: int) -> Any:
    """A layer of a cache for as many copies of the batch."""
    found = copy(layer)
    found.batch_select_indices(torch.arange(rows, device=layer.keys.device).repeat(lanes))
    return found


def _tensors(output: Any) -> Sequence[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, (list, tuple)):
        return [tensor for item in output for tensor in _tensors(item)]
    return []


def _mapped(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(output, Tensor):
        return change(output)
    if isinstance(output, (list, tuple)):
        return type(output)(_mapped(item, change) for item in output)
    return output


def _repeat(output: Any, lanes: int, rows: int) -> Any:
    """The captured output with every stacked tensor repeated for the lanes."""

    def repeated(tensor: Tensor) -> Tensor:
        stacked = tensor.dim() and tensor.shape[0] % rows == 0
        return tensor.repeat(lanes, *[1] * (tensor.dim() - 1)) if stacked else tensor

    return _mapped(output, repeated)
