"""The weights of a run after any of its steps, as a folder that others load."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from zotune.history.steps import check_step
from zotune.load import load_to_replay, load_tokenizer
from zotune.model_folder import refuse_filled, save_folder
from zotune.resolve import config_of
from zotune.revisit import replay_onto
from zotune.run import RunPaths
from zotune.watch import Watch


def checkout(
    run: str | Path, step: int, to: Path, watch: Watch, force: bool = False, trust_remote_code: bool = False
) -> dict[str, Any]:
    """Rebuild the weights after the first `step` steps and save them to `to`: a Hugging Face folder, or for LoRA the
    PEFT adapter. The run is only read. Raises RunError for a step that the run has not, another base model, a hash
    on the way that differs, and for a folder `to` with content unless `force`.
    """
    begun = time.perf_counter()
    paths = RunPaths(run).check()
    check_step(paths.folder, step, paths.recorded()[1])
    refuse_filled(to, force)
    config = config_of(paths, trust_remote_code)
    model, offload = load_to_replay(config)
    found = replay_onto(paths, model, watch, step, offload, config)
    save_folder(model, load_tokenizer(config), to, force)
    kind = "adapter" if hasattr(model, "peft_config") else "model"
    return {**found, "kind": kind, "to": str(to), "seconds": time.perf_counter() - begun}
