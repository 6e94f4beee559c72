"""What one can do with a run that is there: replay it, evaluate it, list it. The run folder is only read."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zotune.config import TrainConfig
from zotune.errors import ConfigError, RunError
from zotune.journal import StepRecord
from zotune.journal import read as read_journal
from zotune.load import load_model, load_tokenizer
from zotune.rebuild import apply, rebuild
from zotune.run import RunPaths
from zotune.session import Session, config_of
from zotune.watch import Watch
from zotune.weights import base_sha256


def replay(run: str | Path, verify: bool, watch: Watch, to: Path | None = None) -> dict[str, Any]:
    """Rebuild a run's weights from base model and journal, without data; with `verify`, RunError unless the hash is the
    recorded one. `to` is a folder that gets the model in Hugging Face format."""
    begun = time.perf_counter()
    paths = RunPaths(run).check()
    config = config_of(paths)
    header, records, _ = read_journal(paths.journal)
    model = load_model(config)
    optimizer = rebuild(header, model)
    if header.get("base_sha256") not in (None, base_sha256(model)):
        raise RunError(f"the base model {config.model} has changed since the run began. Remedy: restore it.")
    found = apply(optimizer, records)
    if verify and not found["verified"]:
        known = found["recorded_sha256"]
        raise RunError(
            f"{paths.folder}: the replayed weights hash to {found['weights_sha256'][:16]}..., "
            + (f"the journal recorded {known[:16]}..." if known else "but the journal has no hash of its last step")
            + f" Remedy: `zotune resume {paths.folder}` finishes a run; else check base model and version."
        )
    if to is not None:
        model.save_pretrained(to)  # type: ignore[operator]
        load_tokenizer(config).save_pretrained(to)
    result = {**found, "journal_bytes": paths.journal.stat().st_size, "seconds": time.perf_counter() - begun}
    return result if found["recorded_sha256"] else {**result, "verified": False}


def evaluate_run(config: TrainConfig, run: str | Path | None, watch: Watch) -> dict[str, Any]:
    """Accuracy and loss on `config.eval`: of the weights that a run's journal leads to, or of the bare model.

    `config` is the run's own, with other evaluation rows perhaps. The run folder is only read.
    """
    session, steps = Session(config), 0
    if run is not None:
        paths = RunPaths(run).check()
        header, records, torn = read_journal(paths.journal)
        if torn:
            watch.say(f"The journal ends in {torn} bytes of an unfinished record; they are left out.")
        steps = apply(rebuild(header, session.model), records)["steps"]
    found = session.evaluate()
    if found is None:
        raise ConfigError("there are no rows to evaluate on. Remedy: --eval FILE.")
    watch.eval(steps, {key: value for key, value in found.as_dict().items() if value is not None})
    return found.as_dict() | {"steps": steps}


def log_rows(run: str | Path) -> Sequence[dict[str, Any]]:
    """The journal as rows: step, lr, losses, their mean, and the projected gradient of the first probe."""
    header, records, _ = read_journal(RunPaths(run).check().journal)
    rows = []
    eps, queries = header["arguments"].get("eps"), header["arguments"].get("queries", 1)
    for record in records:
        if isinstance(record, StepRecord):
            row: dict[str, Any] = {"step": record.step, "lr": record.lrs[0], "losses": list(record.losses)}
            row["loss"] = math.fsum(record.losses) / len(record.losses)
            if eps and len(record.losses) == 2 * queries:
                row["projected_gradient"] = (record.losses[0] - record.losses[1]) / (2 * eps * queries)
            rows.append(row)
    return rows
