"""From a recorded run to the weights and metrics of its last step: a snapshot, then the journal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from zotune.errors import RunError
from zotune.journal import HashRecord, Journal
from zotune.metrics import evaluate_now, is_due, log_step
from zotune.rebuild import current_sha256, steps_of
from zotune.run import RunFolder
from zotune.session import Session
from zotune.watch import Watch
from zotune.weights import weights_sha256

if TYPE_CHECKING:
    from zotune.distributed.follower import FollowerFolder, FollowerJournal

    Folder = RunFolder | FollowerFolder
    Log = Journal | FollowerJournal

# What the method carries beyond the weights lies in the same file of a snapshot, under names no parameter has.
CARRIED = "carried:"
CARRIED_SHA256 = "carried_sha256"  # in the snapshot's meta.json: the journal has no place for it


def snapshot_of(
    session: Session, tensors: Mapping[str, Tensor], sha256: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the meta of a snapshot: the weights, which hash to `sha256`, and what the method carries."""
    carried = session.optimizer.carried()
    meta = {"weights_sha256": sha256, CARRIED_SHA256: weights_sha256(carried)}
    return {**tensors, **{CARRIED + name: tensor for name, tensor in carried.items()}}, meta


def catch_up(session: Session, folder: Folder, journal: Log, watch: Watch) -> None:
    """Weights and metrics as they were after the journal's last step; raises RunError where a recorded hash differs."""
    optimizer = session.optimizer
    steps = steps_of(list(journal.records))
    hashes = {record.step: record.sha256 for record in journal.records if isinstance(record, HashRecord)}
    lines, logged = _intact(session, folder.metrics(), len(steps))
    folder.cut_metrics(lines)
    if not lines:
        evaluate_now(session, folder, watch)
    _restore(session, folder, logged, hashes, watch)
    start = optimizer.steps
    for record in steps[start:]:
        session.replay(record)
        if optimizer.steps > logged:
            log_step(session, folder, record)
            if is_due(session, optimizer.steps):
                evaluate_now(session, folder, watch)
        if optimizer.steps in hashes and hashes[optimizer.steps] != current_sha256(optimizer):
            raise RunError(
                f"{folder.path}: the weights after {optimizer.steps} steps are not those that the run recorded. "
                "Remedy: use the versions of zotune and torch that its journal names."
            )
    how = "with the run's rows" if optimizer.direction.reads_inputs else "without data"
    watch.say(f"Replayed steps {start} to {optimizer.steps} {how}; going on from there.")


def _intact(session: Session, rows: list[dict[str, Any]], steps: int) -> tuple[int, int]:
    """How many lines of the metrics are those of an undisturbed run, and up to which step they tell all."""
    lines, logged = 0, -1
    for step in range(steps + 1):
        wanted = ["loss"] * (step > 0) + ["eval"] * (step == 0 or is_due(session, step))
        found = rows[lines : lines + len(wanted)]
        if [key for row, key in zip(found, wanted, strict=False) if row["step"] == step and key in row] != wanted:
            break
        lines, logged = lines + len(wanted), step
    return lines, max(logged, 0)


def _restore(session: Session, folder: Folder, most: int, hashes: dict[int, str], watch: Watch) -> None:
    """Put the newest snapshot up to step `most` into the weights, if it holds what was recorded of it."""
    optimizer, group = session.optimizer, session.group
    found = _intact_snapshot(folder, most, hashes, watch)
    if group is not None and optimizer.perturber.sharding:
        # Parts of one model must be of one step; where a process finds no snapshot, all replay from the base.
        told = group.exchange(str(found and found[0]).encode())
        found = found if len(set(told)) == 1 else None
    if found is None:
        return
    step, tensors, carried = found
    optimizer.put(tensors)
    optimizer.steps = step
    try:
        optimizer.carry(carried)
    except (LookupError, ValueError, TypeError, RuntimeError, RunError) as error:  # hashed, and yet not of this method
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].partition(" Remedy:")[0].rstrip(".")
        raise RunError(
            f"{folder.path}: what the snapshot of step {step} carries is not of this method ({reason}). "
            f"Remedy: delete {folder.paths.snapshots}; the journal holds every step."
        ) from error


def _intact_snapshot(
    folder: Folder, most: int, hashes: dict[int, str], watch: Watch
) -> tuple[int, dict[str, Tensor], dict[str, Tensor]] | None:
    """Step, weights and what the method carries: of the newest snapshot whose weights have the hash that the journal
    recorded, and whose carried tensors have the one that stands beside them.
    """
    found = folder.latest_snapshot(most)
    while found is not None:
        step, tensors, meta = found
        carried = {name.removeprefix(CARRIED): tensors.pop(name) for name in list(tensors) if name.startswith(CARRIED)}
        if step not in hashes:  # the run was stopped between the two: a replay finds the same
            problem = ""
        elif weights_sha256(tensors) != hashes[step]:
            problem = "does not hold the weights it was made of"
        elif carried and not isinstance(meta.get(CARRIED_SHA256), str):
            problem = "is of a version that did not record the hash of what the method carries"
        elif carried and weights_sha256(carried) != meta[CARRIED_SHA256]:
            problem = "does not hold what the method carried"
        else:
            return step, tensors, carried
        if problem:
            watch.say(f"The snapshot of step {step} {problem}; it is left out.")
        found = folder.latest_snapshot(step - 1)
    return None
