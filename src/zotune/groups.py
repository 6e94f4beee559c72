"""Parameter groups, as torch's optimizers have them: of a scope, or as given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from zotune.errors import UserError
from zotune.scope import decays, select


def decay_groups(model: nn.Module, scope: str | Sequence[str], weight_decay: float) -> list[dict[str, Any]]:
    """Those of a scope: what decays, and what does not. Raises ConfigError, UserError for names that are none."""
    names = select(model, scope) if isinstance(scope, str) else list(dict.fromkeys(scope))
    named = dict(model.named_parameters())
    unknown = [name for name in names if name not in named]
    if unknown:
        raise UserError(
            f"no parameter named {unknown[0]!r} in the model. Remedy: use names of model.named_parameters()."
        )
    decayed = [name for name in names if decays(model, name)] if weight_decay else []
    plain = [name for name in names if name not in set(decayed)]
    groups = []
    for part, decay in ((decayed, weight_decay), (plain, 0.0)):
        if part:
            groups.append({"params": [named[name] for name in part], "names": part, "weight_decay": decay})
    return groups


def given_groups(model: nn.Module, params: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that were given as torch takes them, with the canonical names of their parameters. Raises UserError."""
    by_id = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = []
    for group in params:
        if not isinstance(group, Mapping):
            raise UserError(
                f"params holds a {type(group).__name__}, not a parameter group. Remedy: params=[{{'params': [...]}}]."
            )
        listed = list(group["params"])
        if any(id(parameter) not in by_id for parameter in listed):
            raise UserError(
                "a parameter group holds a tensor that is not a parameter of the model. Remedy: take it from the model."
            )
        groups.append({**group, "params": listed, "names": [by_id[id(parameter)] for parameter in listed]})
    return groups
