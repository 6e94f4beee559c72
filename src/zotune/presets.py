"""lr and eps where the user gives none, by method and tuning mode, and up to which rate a method is known to learn.

Of MeZO's paper (arXiv 2305.17333, tables 15 and 16; 7 to 13 billion weights, 20,000 steps): full 1e-6 of {1e-7, 1e-6},
LoRA 1e-4 of {5e-5, 1e-4}, prefix 1e-2 of {1e-3, 1e-2}. What it does not train (norms, biases, prompt, head) has what
was measured on small models, with a margin (docs/tuning-modes.md). The factories in Python keep their papers' numbers,
and so does a run that was recorded with neither: a preset is written into a new run's config before it begins.
"""

from __future__ import annotations

import dataclasses
import inspect
from dataclasses import dataclass
from typing import final

from zotune.config import TrainConfig


@final
@dataclass(frozen=True, slots=True)
class Preset:
    """mode: what is trained, in a word; lr and eps: for it."""

    mode: str
    lr: float
    eps: float


# For each method: lr and eps of its paper (those of its factory) for all weights, and the lr that it takes where MeZO
# takes 1: the ratio of the best rates at equal forwards, the middle one of three tasks, known to a factor of four
# (bench/results/methods.md). Steps of some are not as long as the slope, so that their rates are on another scale. Of a
# method that is not here it is its paper's lr over MeZO's.
_METHODS: dict[str, tuple[float, float, float]] = {
    "mezo": (1e-6, 1e-3, 1.0),
    "sparse_mezo": (2e-6, 1e-3, 2.0),
    "lozo": (1e-6, 1e-3, 1.0),
    "lozo_m": (1e-6, 1e-3, 1.0),
    "loren": (1e-6, 1e-3, 4.0),
    "curvzo": (1e-6, 1e-3, 1.0),
    "hizoo": (1e-6, 1e-3, 1.0),
    "conmezo": (1e-6, 1e-3, 1.0),
    "kerzoo": (1e-6, 1e-3, 1.0),
    "subzero": (1e-6, 1e-3, 1.0),
    "agzo": (1e-6, 1e-3, 0.016),
    "aimzo": (5e-4, 6e-5, 2.0),
    "grzo": (1e-7, 1e-3, 0.1),
    "meazo": (1e-5, 1e-3, 10.0),
    "fzoo": (1e-5, 1e-3, 40.0),
    "es": (5e-4, 1e-3, 125.0),
    "eggroll": (5e-4, 1e-3, 125.0),
    "zo_muon": (1e-2, 1e-3, 2500.0),
    "qzo": (1e-7, 1e-3, 0.1),
}
# For each mode: MeZO's lr, None where it is that of all weights, and eps.
_MODES: dict[str, tuple[float | None, float]] = {
    "full": (None, 1e-3),
    "last": (None, 1e-3),  # also block:N, dominant: a part of the weights takes more, how much more `zotune tune` says
    "bank": (None, 1e-3),
    "sensitive": (None, 1e-3),
    "scales": (None, 1e-3),
    "lora": (1e-4, 1e-2),
    "prefix": (1e-2, 1e-1),
    "prompt": (1e-3, 1e-3),
    "norms": (1e-4, 3e-4),
    "biases": (1e-4, 3e-4),
    "head": (3e-5, 1e-3),
}
_PLACES = {"block": "last", "dominant": "last", "regex": "last"}
_MEZO_LR, _MEZO_EPS = 1e-6, 1e-3
# lr times the number of trained weights, which lies near 1e4 wherever MeZO is known to learn best: 1e-6 on 13 billion
# (its paper; on 7 billion 2e-6 diverges, arXiv 2402.15751), 5e-4 on 21 million, 1e-4 on 135 million (docs/limits.md).
_MOST = 2e4


def mode_of(scope: str) -> str:
    """The tuning mode of a scope: of `norms&last:6` the kind of weights, of `last:6` and the like `last`."""
    kinds = [part.strip().partition(":")[0] for part in scope.split("&")]
    named = [_PLACES.get(kind, kind) for kind in kinds if _PLACES.get(kind, kind) in _MODES]
    return next((kind for kind in named if kind not in ("full", "last")), "last" if "last" in named else "full")


def preset(method: str, scope: str) -> Preset:
    """lr and eps of a method for a scope. Raises KeyError for no method."""
    own_lr, own_eps, times = _of(method)
    mode = mode_of(scope)
    lr, eps = _MODES[mode]
    return Preset(mode, own_lr if lr is None else _round(lr * times), _round(eps * own_eps / _MEZO_EPS))


def with_preset(config: TrainConfig) -> TrainConfig:
    """The config of a new run with the preset in place of a lr and eps that were not given."""
    if None not in (config.lr, config.eps):
        return config
    try:
        found = preset(config.method, config.scope)
    except KeyError:  # which is refused where the method is looked for
        return config
    lr, eps = (found.lr if config.lr is None else config.lr), (found.eps if config.eps is None else config.eps)
    return dataclasses.replace(config, lr=lr, eps=eps)


def said(config: TrainConfig, lr: float, eps: float) -> str:
    """lr and eps with where they are from: lr 0.0001, eps 0.01 (presets for lora)."""
    found = preset(config.method, config.scope)
    both = {"lr": lr == found.lr, "eps": eps == found.eps}
    notes = [f"preset{'s' * all(both.values())} for {found.mode}"] if any(both.values()) else []
    if notes and not all(both.values()):
        notes = [f"{'lr' if both['lr'] else 'eps'}: {notes[0]}"]
    if measured(config, lr):
        notes.insert(0, "lr: measured by zotune tune")
    return f"lr {lr:g}, eps {eps:g}" + (f" ({'; '.join(notes)})" if notes else "")


def measured(config: TrainConfig, lr: float) -> bool:
    """Whether `zotune tune` found this lr, for this method and scope, and wrote it into the config."""
    return config.tuned == tuned_for(lr, config.method, config.scope)


def tuned_for(lr: float, method: str, scope: str) -> str:
    """What `zotune tune` writes beside the lr: how large it is, and what for."""
    return f"{lr:g} for {method}, {scope}"


def check_tuned(config: TrainConfig, lr: float) -> str | None:
    """A sentence where the lr was measured for another method or scope than this run's."""
    if config.tuned is None or measured(config, lr) or not config.tuned.startswith(f"{lr:g} for "):
        return None
    found = preset(config.method, config.scope)
    return (
        f"Warning: lr {config.tuned}, is what `zotune tune` measured; this run is of {config.method}, {config.scope}. "
        f"Remedy: `zotune tune` again, or --lr; the preset for {found.mode} is {found.lr:g}."
    )


def ratio(method: str) -> float:
    """The lr that a method takes where MeZO takes 1."""
    return _of(method)[2]


def most(method: str, trained: int) -> float:
    """The lr up to which a method is known to learn with so many trained weights; never less than its paper's."""
    own_lr, _, times = _of(method)
    return max(own_lr, _MOST * times / trained)


def _of(method: str) -> tuple[float, float, float]:
    """lr and eps of a method for all weights, and its ratio. Raises KeyError for no method."""
    if method in _METHODS:
        return _METHODS[method]
    from zotune.methods import METHODS

    own = inspect.signature(METHODS[method].build).parameters
    lr, eps = own["lr"].default, own["eps"].default
    return lr, eps, lr / _MEZO_LR


def _round(value: float) -> float:
    return float(f"{value:.2g}")
