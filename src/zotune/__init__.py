"""Fine-tune language models with forward passes only, in the memory of inference."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zotune.distributed.own import OwnBatches as OwnBatches
    from zotune.distributed.parallel import Parallel as Parallel
    from zotune.dominant import dominant_layer as dominant_layer
    from zotune.estimate import Point as Point
    from zotune.estimate import Probe as Probe
    from zotune.methods import *  # noqa: F403 - the factories of the table, METHODS too
    from zotune.noise import Key as Key
    from zotune.optimizer import ZerothOrder as ZerothOrder
    from zotune.perturb import Perturber as Perturber
    from zotune.rebuild import replay as replay
    from zotune.weights import weights_sha256 as weights_sha256

__version__ = "0.1.0"

# Where each public name lives that is no method: `zotune.MeZO` and the others come from the table of methods. Loaded on
# first use: `zotune --help` must not wait for torch.
_HOMES = {
    "Key": "noise",
    "METHODS": "methods",
    "OwnBatches": "distributed.own",
    "Parallel": "distributed.parallel",
    "Perturber": "perturb",
    "Point": "estimate",
    "Probe": "estimate",
    "ZerothOrder": "optimizer",
    "dominant_layer": "dominant",
    "replay": "rebuild",
    "weights_sha256": "weights",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = globals()[name] = getattr(import_module(f"zotune.{_HOMES[name]}"), name)
        return value
    if name == "__all__":
        return __dir__()
    # A module of the package is not looked for among the methods, for which torch is loaded: import finds it.
    if not name.startswith("_") and find_spec(f"zotune.{name}") is None:
        for method in import_module("zotune.methods").METHODS.values():
            if method.build.__name__ == name:
                return method.build
    raise AttributeError(f"module 'zotune' has no attribute {name!r}")


def __dir__() -> list[str]:
    methods = import_module("zotune.methods").METHODS.values()
    return sorted([*_HOMES, *(method.build.__name__ for method in methods)])
