"""What an optimizer refuses before it begins: parts that do not go together."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from zotune.direction import Direction, Target
from zotune.errors import ConfigError, UserError
from zotune.noise import Key
from zotune.perturb import Perturber
from zotune.rule import Rule

if TYPE_CHECKING:
    from zotune.distributed.sharing import Sharing

logger = logging.getLogger(__name__)


def check_module(model: Any) -> None:
    """Raises UserError for what is no module, such as the parameters that torch's own optimizers take."""
    if not isinstance(model, nn.Module):
        raise UserError(
            f"a zotune optimizer is built on a model, got {type(model).__name__}. Remedy: pass the nn.Module itself; "
            "scope= or params= choose its parameters."
        )


def check_examples(method: str, batch: Any, weight: float) -> None:
    """Raises UserError for a micro-batch whose examples a method that needs a loss of each cannot tell apart."""
    if batch is None:
        raise UserError(
            f"{method} needs one loss for each example, and a closure gives one number. "
            "Remedy: step(objective, batch) with an objective that returns losses of shape (B,)."
        )
    if weight != 1:
        raise UserError(f"{method} takes the losses of examples, each with weight 1. Remedy: leave weight out.")


def no_example() -> UserError:
    """What is said of a micro-batch without rows."""
    return UserError("a micro-batch holds no example, so it has no loss. Remedy: leave out batches without rows.")


def check_matrices(method: str, direction: Direction, targets: Sequence[Target]) -> None:
    """Raises ConfigError for a method of matrices in a scope without one: under its name another would run."""
    if direction.of_matrices and all(target.data.dim() < 2 for target in targets):
        raise ConfigError(
            f"{method} steps along matrices, and the scope holds only vectors. "
            "Remedy: a scope with weight matrices, such as last:2, or mezo for vectors."
        )


def no_inputs(method: str, names: Sequence[str]) -> ConfigError:
    """What a method is told that follows the layers' inputs, where no matrix of its scope is multiplied with any."""
    listed = ", ".join(names[:2]) + (", ..." if len(names) > 2 else "")
    return ConfigError(
        f"{method} takes its directions from what matrices are multiplied with, and the forward multiplies none of its "
        f"scope ({listed}). Remedy: a scope with linear layers, such as last:2, or mezo."
    )


def check_folding(fold_every: int, direction: Direction, groups: Sequence[Mapping[str, Any]]) -> None:
    """Raises ConfigError unless the low-rank basis outlives so many steps, and nothing else is written meanwhile."""
    if fold_every < 1 or direction.window() % fold_every:
        raise ConfigError(
            f"fold_every is {fold_every}, which does not divide the {direction.window()} steps for which this method "
            "keeps its low-rank basis. Remedy: a divisor of that, or 1."
        )
    if fold_every > 1 and any(group["weight_decay"] for group in groups):
        raise ConfigError("weight decay writes every weight in every step. Remedy: fold_every=1, or no weight decay.")


def check_offload(method: str, direction: Direction, rule: Rule, parallel: Sharing | None) -> None:
    """Raises ConfigError unless updates can wait until the blocks that they change come to the device."""
    if parallel is not None:
        raise ConfigError(
            "offload streams the blocks of one process, which shares its steps with none. Remedy: leave --offload out, "
            "or start without torchrun and without a pool."
        )
    if not (direction.may_wait and rule.may_wait):
        raise ConfigError(
            f"an update of {method} needs more than its tensor and the step's key, so it cannot wait until a block "
            "comes to the device. Remedy: leave --offload out, or take a method such as mezo, sparse_mezo or lozo."
        )


def check_parallel(perturber: Perturber, parallel: Sharing | None, method: str, per_example: bool) -> None:
    """Raises ConfigError for a sharded model whose processes would not all take part in every forward, and for a method
    that needs more than losses of batches that the others have not seen.
    """
    if parallel is None:
        return
    if parallel.own and (per_example or perturber.direction.reads_inputs):
        raise ConfigError(
            f"{method} draws its directions from the examples, and each process has its own. Remedy: another method, "
            "or zotune.Parallel, whose processes are given all of them."
        )
    if perturber.sharding and "shard" not in parallel.mode:
        raise ConfigError(
            f"the model is sharded, so every process takes part in every forward, and parallel is {parallel.mode!r}. "
            "Remedy: parallel 'data+shard' or 'shard'."
        )
    if parallel.in_step and per_example:
        raise ConfigError(
            f"{method} may run its examples one by one, so that processes with other micro-batches would lose step in "
            "a sharded model. Remedy: parallel 'shard'."
        )


def warn_alone(method: str) -> None:
    """Say, of an optimizer that shares with none, that other processes are there: each trains weights of its own."""
    library: Any = sys.modules.get("torch.distributed")
    if library is None or not library.is_available() or not library.is_initialized():
        return
    count = library.get_world_size()
    if count > 1:
        logger.warning(
            "%d processes have joined, and this %s shares its steps with none of them: each trains weights of its own. "
            "Remedy: parallel=zotune.Parallel() where all are given the same rows, zotune.OwnBatches() where each has "
            "its own.",
            count, method,
        )  # fmt: skip


def check_banks(
    perturber: Perturber, direction: Direction, groups: Sequence[Mapping[str, Any]], method: str, seed: int
) -> None:
    """Raises ConfigError unless what is kept in banks has factors at every step: they hold nothing else."""
    banked = [target for target in perturber.targets() if perturber.bank(target.name) is not None]
    if not banked:
        return
    if any(group["weight_decay"] for group in groups):
        raise ConfigError("a bank's base is read-only, so it cannot decay. Remedy: no weight decay.")
    if direction.reads_inputs or direction.everywhere().factors(banked[0], Key(seed, 0)) is None:
        raise no_bank(method, banked[0].name)


def no_bank(method: str, name: str) -> ConfigError:
    """What a method is told whose update of a parameter cannot go into its bank."""
    return ConfigError(
        f"{method} has no low-rank form for {name}, which is kept as factors. Remedy: --method lozo, or another scope."
    )
