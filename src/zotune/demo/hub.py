"""Downloads from the Hugging Face hub, and quiet use of transformers."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def snapshot(repo: str, kind: str, patterns: list[str]) -> Path:
    """Folder with the files of `repo` that match `patterns`, in the hub's own cache.

    `kind` is model or dataset.

    Raises whatever the hub client raises: errors of several libraries.
    """
    from huggingface_hub import snapshot_download

    with quiet():
        return Path(snapshot_download(repo, repo_type=kind, allow_patterns=patterns))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' progress bars, log lines and warnings; every setting is put back."""
    import transformers

    log: Any = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
