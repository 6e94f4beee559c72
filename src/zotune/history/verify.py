"""Replaying a run and comparing every hash that it recorded."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from zotune.errors import RunError
from zotune.load import load_to_replay
from zotune.rebuild import current_sha256
from zotune.records import HashRecord
from zotune.resolve import config_of
from zotune.revisit import replayer
from zotune.run import RunPaths
from zotune.watch import Watch


def verify(run: str | Path, watch: Watch, trust_remote_code: bool = False) -> dict[str, Any]:
    """Fold the journal into the base model; at each recorded hash the weights must have it. The run is only read.

    Raises RunError for another base model, at the first hash that differs, and when the run recorded none;
    JournalError for a corrupt journal.
    """
    begun = time.perf_counter()
    paths = RunPaths(run).check()
    header, records, torn = paths.recorded()
    hashes = [record for record in records if isinstance(record, HashRecord)]
    if not hashes:
        raise RunError(
            f"{paths.folder} has recorded no hash yet, so there is nothing to compare. "
            f"Remedy: `zotune resume {paths.folder}` finishes the run."
        )
    config = config_of(paths, trust_remote_code)
    model, offload = load_to_replay(config)
    optimizer, fold = replayer(paths, header, model, watch, offload, config)
    right: list[int] = []
    for record in records:
        if not isinstance(record, HashRecord):
            fold(record)
        elif record.step != optimizer.steps:
            raise RunError(
                f"{paths.journal} has the hash of step {record.step} behind step {optimizer.steps}. "
                "Remedy: restore the file from a copy."
            )
        elif (found := current_sha256(optimizer)) != record.sha256:
            versions = ", ".join(f"{name} {header[name]}" for name in ("zotune", "torch") if name in header)
            raise RunError(
                f"{paths.folder}: after {record.step} steps the weights hash to {found[:16]}..., recorded was "
                f"{record.sha256[:16]}...; {len(right)} of {len(hashes)} hashes before it are right (the last after "
                f"step {right[-1] if right else 0}). Remedy: use the machine and versions of the run ({versions})."
            )
        else:
            right.append(record.step)
    return {
        "verified": True,
        "steps": optimizer.steps,
        "hashes": len(right),
        "hashed_steps": right,
        "unhashed_steps": optimizer.steps - right[-1],
        "torn_bytes": torn,
        "weights_sha256": current_sha256(optimizer),
        "seconds": time.perf_counter() - begun,
    }
