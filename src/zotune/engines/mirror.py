"""The trained state of a run over a read-only base, where the base itself is not: in the workers of a server.

Header and records are all that a mirror is told. It rebuilds the optimizer that they describe on layers that have names
and sizes and no weights, and replays the records with the code that the run itself uses. So its banks and its probes
are those of the run, and what crosses to it are seeds and scalars.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from zotune.errors import RunError
from zotune.noise import Key
from zotune.nonfinite import replay_step
from zotune.optimizer import ZerothOrder
from zotune.quantised.bank import PARAMETER, Bank
from zotune.rebuild import current_sha256, rebuild
from zotune.records import HashRecord, parse_records


@final
class Sizes(nn.Module):
    """Stands for a linear layer that lies elsewhere."""

    def __init__(self, rows: int, columns: int, device: torch.device) -> None:
        super().__init__()
        self.out_features, self.in_features = rows, columns
        self.weight = torch.zeros((), device=device).expand(rows, columns)


def layer_of(parameter: str) -> str:
    """The name of the layer whose bank a parameter is."""
    return parameter.removesuffix(f".{PARAMETER}")


@final
class Mirror:
    """The banks of a run and the probes of its next step.

    header: as `ZerothOrder.header` gives it; every parameter is a bank's. bank_rank: the most columns of a bank.
    Raises JournalError for a header of other versions.
    """

    def __init__(self, header: dict[str, Any], bank_rank: int, device: torch.device) -> None:
        model = nn.Module()
        for parameter in header["parameters"]:
            rows, columns = parameter["shape"]
            bank = Bank(Sizes(rows, columns, device), getattr(torch, parameter["dtype"]), bank_rank)
            _put(model, layer_of(parameter["name"]), bank)
        self._optimizer = rebuild(header, model)

    @property
    def step(self) -> int:
        """The step that comes next."""
        return self._optimizer.steps

    @property
    def sizes(self) -> dict[str, tuple[int, int]]:
        """Rows and columns of each layer."""
        return {layer_of(target.name): target.matrix_shape for target in self._optimizer.perturber.targets()}

    def follow(self, records: bytes) -> None:
        """Replay what the run has recorded since. Raises RunError where its hash tells of other weights.

        A hash is compared until a bank is brought back to a lower rank: from then on the last bits are LAPACK's.
        """
        for record in parse_records(Path("what the run recorded"), records, 0)[0]:
            if not isinstance(record, HashRecord):
                replay_step(self._optimizer, record)
                continue
            found = current_sha256(self._optimizer)  # asked for always: a hash marks a fold
            if record.sha256 != found and not self._shortened():
                raise RunError(
                    f"what is served after {record.step} steps is not what was trained. Remedy: the same versions of "
                    "zotune and torch in both."
                )

    def _shortened(self) -> bool:
        tensors = self._optimizer.weights()
        return any(float(tensor) > 0 for name, tensor in tensors.items() if name.endswith(".lost"))

    def adapters(self, query: int, scale: float) -> dict[str, tuple[Tensor, Tensor]]:
        """For each layer u (rows, k) and v (columns, k) in float32: `u v'` is what the layer's weight differs by.

        That is what was learned plus `scale * z` of the step's direction number `query`, in columns of their own: added
        to what was learned, a small probe would lose its last bits in a type of 16 bits.
        """
        optimizer, found = self._optimizer, {}
        key = Key(optimizer.seed, optimizer.steps, query)
        for target in optimizer.perturber.targets():
            bank = optimizer.perturber.bank(target.name)
            assert bank is not None
            parts = [(bank.u, bank.v)]
            if target.pending is not None:
                parts.append((target.pending.scale * target.pending.u.float(), target.pending.v.float()))
            if scale and optimizer.direction.active(target, key):
                factors = optimizer.direction.factors(target, key)
                assert factors is not None  # the optimizer refuses banks to directions without
                parts.append((scale * factors.scale * factors.u.float(), factors.v.float()))
            u, v = (torch.cat([part[side] for part in parts], 1) for side in (0, 1))
            found[layer_of(target.name)] = (u, v)
        return found


def columns(optimizer: ZerothOrder, bank_rank: int, steps: int) -> int:
    """The most columns that `Mirror.adapters` gives in a run of so many steps."""
    points, most = optimizer.estimator.points(optimizer.seed, 0), 0
    keys = list(dict.fromkeys(point.key for point in points if point.scale))
    folds = -(-steps // optimizer.fold_every)
    for target in optimizer.perturber.targets():
        probe = optimizer.direction.factors(target, keys[0])
        summed = optimizer.direction.combined(target, [(key, 1.0) for key in keys])
        if probe is not None:
            of_a_fold = (probe if summed is None else summed).u.shape[1]
            most = max(most, min(bank_rank, folds * of_a_fold) + of_a_fold + probe.u.shape[1])
    return most


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    """`module` under a dotted name, with plain modules on the way."""
    *path, last = name.split(".")
    for part in path:
        if part not in model._modules:
            model.add_module(part, nn.Module())
        model = model.get_submodule(part)
    model.add_module(last, module)
