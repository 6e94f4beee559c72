"""Evaluating the loss at theta + s * z without ever writing a perturbed weight.

For the duration of one evaluation every parameter in scope is replaced, inside its module, by a lazy stand-in
(`lazy.py`); the model's own code runs unchanged and the parameters stay bit-identical, whatever their dtype.

Several points can ride in one forward (lanes); when they may is decided in `evaluator.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, final

from torch import Tensor, nn

from zotune.direction import Direction, Factors, Target
from zotune.distributed.sharded import Sharding, released
from zotune.errors import CoverageError, UserError
from zotune.estimate import Point
from zotune.inputs import Inputs
from zotune.lane_rules import RULES
from zotune.lazy import Lanes, Perturbed
from zotune.noise import Key
from zotune.quantised.bank import Bank
from zotune.scope import input_embeddings


@final
class Perturber:
    """Evaluates a model at perturbed points.

    `names` are canonical parameter names (those of `model.named_parameters()`); a tied parameter counts once, under its
    first name, and is replaced at every place where it is used. `away` holds what stands for the data of parameters
    that come to the device in the forward (`zotune.engines.offload`).
    """

    def __init__(
        self,
        model: nn.Module,
        names: Sequence[str],
        direction: Direction,
        fast: bool = False,
        away: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.model, self.direction, self.fast = model, direction, fast
        self._away = away or {}
        by_id = {id(p): name for name, p in model.named_parameters() if name in set(names)}
        self._sites: dict[str, list[tuple[nn.Module, str]]] = {name: [] for name in names}
        for module in model.modules():
            for key, parameter in module._parameters.items():
                if parameter is not None and id(parameter) in by_id:
                    self._sites[by_id[id(parameter)]].append((module, key))
        table = input_embeddings(model)
        self._tokens = frozenset(by_id[id(p)] for p in table.parameters() if id(p) in by_id) if table else frozenset()
        self.pending: dict[str, Factors] = {}  # updates that are not yet folded into the weights
        missing = [name for name, sites in self._sites.items() if not sites]
        if missing:
            raise UserError(
                f"no parameter named {missing[0]!r} in the model. Remedy: use names of model.named_parameters()."
            )
        for name, ((module, key), *_) in self._sites.items():
            if hasattr(module, "_hf_hook") and module._parameters[key].is_meta:  # type: ignore[union-attr]
                raise UserError(
                    f"{name} waits elsewhere until accelerate brings it into its module's forward, past what stands "
                    "for it there. Remedy: a device_map whose devices hold all that is trained."
                )
        self.sharding = Sharding(model, self._sites)
        # Whether a number that the host reads in a forward would stop the device.
        self.quiet = any(target.data.device.type != "cpu" for target in self.targets())

    def targets(self) -> list[Target]:
        """The parameters in scope as they are now, in the order of the names given."""
        return [self.target(name) for name in self._sites]

    def target(self, name: str) -> Target:
        """A parameter in scope as it is now."""
        data = self._away.get(name)
        data = self._parameter(name).detach() if data is None else data
        return Target(name, data, self.fast, self.pending.get(name))

    def weights(self) -> dict[str, Tensor]:
        """The parameters in scope by name, where they lie; what is pending is not in them."""
        return {name: self._parameter(name).detach() for name in self._sites}

    def bank(self, name: str) -> Bank | None:
        """Where the updates of a parameter are kept, if it has no memory of its own."""
        module, _ = self._sites[name][0]
        return module if isinstance(module, Bank) else None

    def _parameter(self, name: str) -> Tensor:
        if name in self.sharding:
            return self.sharding.parameter(name)
        module, key = self._sites[name][0]
        parameter = module._parameters[key]
        assert parameter is not None
        return parameter

    def moved(self, points: Sequence[Point], direction: Direction | None = None) -> frozenset[str]:
        """The parameters that differ from what their module holds: perturbed by a point, or with a pending update."""
        keys = {point.key for point in points if point.scale}
        active = (direction or self.direction).active
        return frozenset(t.name for t in self.targets() if t.pending is not None or any(active(t, k) for k in keys))

    def watched(self, key: Key) -> Inputs:
        """Within the context the direction sees what each matrix in scope is multiplied with, as the model runs.

        A weight that is used several times shows its first inputs. `shown` of what it yields names those that did.
        """

        def show(name: str, inputs: Tensor, transposed: bool) -> None:
            self.direction.see(self.target(name), key, inputs, transposed)

        held = {name: module._parameters[attribute] for name, [(module, attribute), *_] in self._sites.items()}
        return Inputs({name: weight for name, weight in held.items() if weight is not None}, show)

    @contextmanager
    def at(
        self,
        *points: Point,
        rows: int = 1,
        every: bool = False,
        direction: Direction | None = None,
        copies: int = 0,
        quiet: bool = False,
        plan: Sequence[bool] = (),
    ) -> Iterator[Lanes]:
        """Within the context the model is at `points` (one lane each, `rows` examples per lane), in eval mode.

        The batch is stacked `copies` times, 0 for once a lane.

        With one point any call works, `generate` included. Yields the Lanes, whose `touched` lists what was used.
        Parameters that no point moves are left as they are, unless `every` is set. `direction`: another than the own.
        `quiet`, `plan`: as `Lanes`.
        """
        direction = direction or self.direction
        lanes = Lanes(direction, points, rows, RULES, tokens=self._tokens, copies=copies, quiet=quiet, plan=plan)
        moved = self.moved(points, direction)

        def gathered(name: str, data: Tensor) -> Perturbed:
            return Perturbed(Target(name, data, self.fast, self.pending.get(name)), lanes)

        training = [module for module in self.model.modules() if module.training]
        saved: list[tuple[nn.Module, str, nn.Parameter | None]] = []
        try:
            for module in training:
                module.training = False
            chosen = [name for name in self._sites if every or name in moved]
            lanes.expected.update(moved)
            for name in chosen:
                if name in self.sharding:
                    continue
                stand_in: Any = Perturbed(self.target(name), lanes)
                for module, key in self._sites[name]:
                    saved.append((module, key, module._parameters[key]))
                    module._parameters[key] = stand_in
            sharded = [name for name in chosen if name in self.sharding]
            around = released(self.model) if self.sharding.somewhere else nullcontext()
            with around, self.sharding.replaced(sharded, gathered):
                yield lanes
        finally:
            for module, key, parameter in saved:
                module._parameters[key] = parameter
            for module in training:
                module.training = True

    def check_coverage(self, lanes: Lanes) -> None:
        """Raises CoverageError unless every parameter that the direction moves was used."""
        missing = [name for name in self._sites if name in lanes.expected - lanes.touched]
        if missing:
            listed = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            others = "|".join(map(re.escape, missing[:5]))
            raise CoverageError(
                f"{len(missing)} of {len(self._sites)} parameters in scope were not used by the forward pass: "
                f"{listed}. Remedy: leave them out by adding '&regex:^(?!({others})$)' to the scope; from Python "
                "coverage=False serves too, if other batches use them."
            )
