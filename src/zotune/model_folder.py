"""Saving a model where others read it: a Hugging Face folder or a PEFT adapter that is there whole, or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import nn

from zotune.adapters import for_others
from zotune.aside import whole_folder
from zotune.disk import written
from zotune.errors import RunError
from zotune.load import quiet


def refuse_filled(to: Path, force: bool) -> None:
    """Raises RunError when `to` is a file, or a folder with content and not `force`. For use before long work."""
    if to.exists() and not to.is_dir():
        raise RunError(f"{to} is a file. Remedy: name a folder.")
    if not force and to.is_dir() and any(to.iterdir()):
        raise RunError(f"{to} is not empty. Remedy: name another folder, or pass --force to replace it.")


def save_folder(model: nn.Module, tokenizer: Any, to: str | os.PathLike[str], force: bool = False) -> Path:
    """Save model (a PEFT model: its adapter alone) and tokenizer to the folder `to`; with `force` it is replaced.

    A model with modules of zotune's own loses them, in place (`zotune.adapters.for_others`).

    Written aside, synced and renamed: after a kill `to` is what it was before or the whole export. Raises RunError.
    """
    to = Path(to).absolute()
    refuse_filled(to, force)
    with written(to, "change its permissions, or name another folder"), whole_folder(to) as aside, quiet():
        for_others(model).save_pretrained(aside)  # type: ignore[operator]
        tokenizer.save_pretrained(aside)
    return to
