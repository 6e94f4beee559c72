"""Layers below the scope run once per batch: their activations do not depend on the probe.

Which layers those are is found by evidence, not by names: in one evaluation, every block that finishes before any
parameter in scope was touched. For such a batch the blocks' last output is captured once; during the probes the lower
blocks are replaced, inside their list, by stand-ins that return it. The capture depends on the batch alone, so it gives
the same bits whether it was kept from an earlier epoch or made anew, and a resumed run follows the same path.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, final

import torch
from torch import Tensor, nn

from zotune.distributed.sharded import no_gradient, released
from zotune.estimate import Point
from zotune.evaluate import evaluating
from zotune.evaluator import batch_rows
from zotune.perturb import Perturber
from zotune.scope import blocks
from zotune.scorer import Objective


@final
class _Stop(Exception):
    """Ends a forward pass once the activations are there."""


@final
class _Shortcut(nn.Module):
    """Stands for a lower block: returns the captured output, answers for the block's other attributes."""

    def __init__(self, block: nn.Module, output: Any) -> None:
        super().__init__()
        object.__setattr__(self, "_block", block)  # not a submodule: the model must not see the block twice
        object.__setattr__(self, "_output", output)

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_block"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return object.__getattribute__(self, "_output")


@final
class Reuse:
    """Captured activations of a model whose scope lies in its top blocks.

    `budget` bytes of them are kept between epochs; batches beyond it are captured again each time they come.
    `depth` is the number of blocks that are skipped, 0 when there are none; `reason` then says why.
    """

    def __init__(self, perturber: Perturber, budget: int) -> None:
        self._perturber, self._budget = perturber, budget
        self._list: nn.ModuleList | None = None
        self._kept: dict[Hashable, Any] = {}
        self.depth, self.reason = 0, "not prepared"

    @property
    def kept_bytes(self) -> int:
        """Bytes of activations kept now."""
        return sum(_bytes_of(output) for output in self._kept.values())

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
        output = self.capture(objective, batch)
        # Twice from the same capture: a block that writes into its input would spoil it for the second probe.
        for _ in range(2):
            with (
                no_gradient(self._perturber.model),
                self._perturber.at(point, rows=batch_rows(batch) or 1),
                self._replaced(output),
            ):
                same = torch.equal(objective(self._perturber.model, batch), expected)  # type: ignore[arg-type]
            if not same:
                self.depth, self._list, self.reason = 0, None, "skipping the blocks below the scope changed a loss"
                return
        self.reason = ""

    def locate(self, objective: Objective, batch: Any, point: Point) -> Tensor | None:
        """Find the blocks below the scope: sets `depth`. Returns the losses that were seen on the way.

        Nothing is proven yet; on the meta device this is all that can be said.
        """
        model = self._perturber.model
        found = blocks(model)
        if found is None or not self._budget:
            self.reason = "no list of blocks in the model" if found is None else "no memory is set aside for it"
            return None
        layers = found[1]
        finished: list[bool] = []
        at = self._perturber.at(point, rows=batch_rows(batch) or 1, every=True)
        with no_gradient(model), at as lanes:
            hooks = [layer.register_forward_hook(lambda *_: finished.append(not lanes.touched)) for layer in layers]
            try:
                expected = objective(model, batch)
            finally:
                for hook in hooks:
                    hook.remove()
        self.depth = finished.index(False) if False in finished else len(finished)
        if not self.depth:
            self.reason = "parameters in scope are used before or inside the first block"
            return None
        self._list = layers
        return expected

    def bytes_of(self, objective: Objective, batch: Any) -> int:
        """Bytes that the captured output of a batch takes."""
        return _bytes_of(self.capture(objective, batch))

    def within(self, objective: Objective, batch: Any, name: Hashable) -> Callable[[int], AbstractContextManager[None]]:
        """For the optimizer's `within`: forwards of `batch`, known as `name` in every epoch, skip the lower blocks."""
        if self._list is None:
            return lambda lanes: nullcontext()
        held: list[Any] = []  # beyond the budget the capture lives as long as the forwards of this batch

        def enter(lanes: int) -> AbstractContextManager[None]:
            if not held:
                held.append(self._output(objective, batch, name))
            output = _repeat(held[0], lanes, batch_rows(batch) or 1) if lanes > 1 else held[0]
            return self._replaced(output)

        return enter

    def _output(self, objective: Objective, batch: Any, name: Hashable) -> Any:
        """The captured output of a batch: kept, or captured now and kept where the budget allows."""
        output = self._kept.get(name)
        if output is None:
            output = self.capture(objective, batch)
            if self.kept_bytes + _bytes_of(output) <= self._budget:
                self._kept[name] = output
        return output

    @contextmanager
    def _replaced(self, output: Any) -> Iterator[None]:
        """Within the context the lower blocks return `output`."""
        assert self._list is not None
        saved = [self._list._modules[str(i)] for i in range(self.depth)]
        for i, block in enumerate(saved):
            assert block is not None
            self._list._modules[str(i)] = _Shortcut(block, output)
        try:
            yield
        finally:
            for i, block in enumerate(saved):
                self._list._modules[str(i)] = block

    def capture(self, objective: Objective, batch: Any) -> Any:
        """The output of the last block below the scope. What lies above is not run."""
        assert self._list is not None
        seen: list[Any] = []

        def stop(module: nn.Module, args: Any, output: Any) -> None:
            seen.append(output)
            raise _Stop

        model = self._perturber.model
        hook = self._list[self.depth - 1].register_forward_hook(stop)
        try:
            with no_gradient(model), evaluating(model), released(model):
                objective(model, batch)
        except _Stop:
            pass
        finally:
            hook.remove()
        return seen[0]


def _tensors(output: Any) -> Sequence[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, (list, tuple)):
        return [tensor for item in output for tensor in _tensors(item)]
    return []


def _bytes_of(output: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(output))


def _repeat(output: Any, lanes: int, rows: int) -> Any:
    """The captured output with every stacked tensor repeated for the lanes."""
    if isinstance(output, Tensor):
        if output.dim() and output.shape[0] % rows == 0:
            return output.repeat(lanes, *[1] * (output.dim() - 1))
        return output
    if isinstance(output, (list, tuple)):
        return type(output)(_repeat(item, lanes, rows) for item in output)
    return output
