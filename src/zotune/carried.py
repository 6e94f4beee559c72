"""What a method carries from step to step beyond the weights, as named tensors: a snapshot and a state need them.

Names are PART/NAME: of the direction, the rule and the estimator what each of them keeps, of low-rank updates that
are not yet folded the left factors, and how often eps was halved.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from zotune.direction import Direction, Factors, State
from zotune.errors import RunError
from zotune.estimate import Estimator
from zotune.noise import Key
from zotune.perturb import Perturber
from zotune.rule import Rule

_PARTS = ("direction", "rule", "estimator", "eps", "pending")


def collected(
    direction: Direction, rule: Rule, estimator: Estimator, pending: Mapping[str, Factors], halvings: int
) -> dict[str, Tensor]:
    """The tensors of all parts."""
    parts = {"direction": direction.state(), "rule": rule.state(), "estimator": estimator.state()}
    if halvings:
        parts["eps"] = {"halvings": torch.tensor(halvings)}
    parts["pending"] = {name: factors.u for name, factors in pending.items()}
    return {f"{part}/{name}": tensor for part, state in parts.items() for name, tensor in state.items()}


def handed_back(
    tensors: Mapping[str, Tensor], direction: Direction, rule: Rule, estimator: Estimator
) -> tuple[State, int]:
    """Give each part its own; returns the left factors of what is not yet folded, and how often eps was halved.

    Raises RunError for a name of no part.
    """
    parts: dict[str, State] = {part: {} for part in _PARTS}
    for name, tensor in tensors.items():
        part, _, rest = name.partition("/")
        if part not in parts:
            raise RunError(f"{name!r} is carried by no method. Remedy: take a state or snapshot that zotune wrote.")
        parts[part][rest] = tensor
    direction.load_state(parts["direction"])
    rule.load_state(parts["rule"])
    estimator.load_state(parts["estimator"])
    return parts["pending"], int(parts["eps"].get("halvings", 0))


def not_folded(left: State, perturber: Perturber, direction: Direction, last: Key) -> dict[str, Factors]:
    """The updates that wait to be folded. Their right factors are those of the `last` step's window: drawn again."""
    found: dict[str, Factors] = {}
    for target in perturber.targets():
        if target.name in left:
            # Also of a tensor that rested in the last step.
            drawn = direction.everywhere().factors(target, last)
            assert drawn is not None
            found[target.name] = replace(drawn, u=left[target.name].to(target.data.device), scale=1.0)
    return found
