"""`zotune init`: a config file with every option, its default and what it is for."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zotune.config import NEVER_FROM_FILE, TrainConfig
from zotune.errors import ConfigError
from zotune.option import hints
from zotune.yaml12 import dump

_HEAD = """# A training run of zotune. Start it with `zotune train --config {name}`; flags win over this file.
# `zotune plan --config {name}` says what it will take. A line that begins with # is the default.
"""
# What stands in a new file where there is no default.
_PLACES = {"model": "MODEL_FOLDER_OR_HUB_ID", "train": "train.jsonl", "output_dir": "runs/first"}


def starter(values: Mapping[str, Any], name: str) -> str:
    """The text of a config file: `values` set, every other option in a comment with its default."""
    parts = [_HEAD.format(name=name)]
    for item in dataclasses.fields(TrainConfig):
        if item.name in NEVER_FROM_FILE:
            continue
        value = values.get(item.name, _PLACES.get(item.name))
        written = value is not None
        if not written:
            value = {} if item.default is dataclasses.MISSING else item.default
        about = textwrap.wrap(hints(TrainConfig)[item.name].__metadata__[0].help, 98)
        line = dump({item.name: str(value) if isinstance(value, Path) else value}).rstrip()
        shown = line if written else "\n".join(f"# {each}" for each in line.splitlines())
        parts.append("\n".join(f"## {each}" for each in about) + f"\n{shown}\n")
    return "\n".join(parts)


def write_starter(path: Path, values: Mapping[str, Any], force: bool = False) -> dict[str, Any]:
    """Write it to `path`. Raises ConfigError when the file is there (unless `force`) or cannot be written."""
    if path.exists() and not force:
        raise ConfigError(f"{path} is there already. Remedy: another name, or --force to replace it.")
    try:
        path.write_text(starter(values, path.name), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}. Remedy: choose another file.") from error
    missing = [name for name in ("model", "train") if name not in values]
    return {"config": str(path), "to_fill_in": missing}
