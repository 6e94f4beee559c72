"""Fine-tune language models with forward passes only, in the memory of inference."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zotune.distributed.parallel import Parallel
    from zotune.dominant import dominant_layer
    from zotune.estimate import Point, Probe
    from zotune.methods import (
        AGZO,
        AIMZO,
        EGGROLL,
        ES,
        FZOO,
        GRZO,
        LOREN,
        MEAZO,
        METHODS,
        QZO,
        ConMeZO,
        CurvZO,
        HiZOO,
        KerZOO,
        LoZO,
        LoZOM,
        MeZO,
        SparseMeZO,
        SubZero,
        ZOMuon,
    )
    from zotune.noise import Key
    from zotune.optimizer import ZerothOrder
    from zotune.perturb import Perturber
    from zotune.rebuild import replay
    from zotune.weights import weights_sha256

__version__ = "0.1.0"

# Where each public name lives. Loaded on first use: `zotune --help` must not wait for torch.
_HOMES = {
    "AGZO": "methods",
    "AIMZO": "methods",
    "ConMeZO": "methods",
    "CurvZO": "methods",
    "EGGROLL": "methods",
    "ES": "methods",
    "FZOO": "methods",
    "GRZO": "methods",
    "HiZOO": "methods",
    "KerZOO": "methods",
    "Key": "noise",
    "LOREN": "methods",
    "LoZO": "methods",
    "LoZOM": "methods",
    "MEAZO": "methods",
    "METHODS": "methods",
    "MeZO": "methods",
    "Parallel": "distributed.parallel",
    "Perturber": "perturb",
    "Point": "estimate",
    "Probe": "estimate",
    "QZO": "methods",
    "SparseMeZO": "methods",
    "SubZero": "methods",
    "ZOMuon": "methods",
    "ZerothOrder": "optimizer",
    "dominant_layer": "dominant",
    "replay": "rebuild",
    "weights_sha256": "weights",
}
__all__ = [
    "AGZO",
    "AIMZO",
    "ConMeZO",
    "CurvZO",
    "EGGROLL",
    "ES",
    "FZOO",
    "GRZO",
    "HiZOO",
    "KerZOO",
    "Key",
    "LOREN",
    "LoZO",
    "LoZOM",
    "MEAZO",
    "METHODS",
    "MeZO",
    "Parallel",
    "Perturber",
    "Point",
    "Probe",
    "QZO",
    "SparseMeZO",
    "SubZero",
    "ZOMuon",
    "ZerothOrder",
    "dominant_layer",
    "replay",
    "weights_sha256",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'zotune' has no attribute {name!r}")
    value = getattr(import_module(f"zotune.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
