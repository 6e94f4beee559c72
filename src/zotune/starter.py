"""`zotune init`: a config file with every option, its default and what it is for."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zotune.config import NEVER_FROM_FILE, TrainConfig
from zotune.disk import refusal
from zotune.durable import write_file
from zotune.errors import ConfigError
from zotune.option import hints
from zotune.presets import with_preset
from zotune.resolve import resolve
from zotune.yaml12 import dump

_HEAD = """# A training run of zotune. Start it with `zotune train --config {name}`; flags win over this file.
# `zotune plan --config {name}` says what it will take. A line that begins with # is the default.
"""
# What stands in a new file where there is no default.
_PLACES = {"model": "MODEL_FOLDER_OR_HUB_ID", "train": "train.jsonl", "output_dir": "runs/first"}


def starter(values: Mapping[str, Any], name: str) -> str:
    """The text of a config file: `values` set, every other option in a comment with its default.

    Raises ConfigError for values that no run could have.
    """
    places = {key: place for key, place in _PLACES.items() if key != "train" or "task" not in values}
    checked = with_preset(resolve({**places, **values})).as_dict()
    parts = [_HEAD.format(name=name)]
    for item in dataclasses.fields(TrainConfig):
        if item.name in NEVER_FROM_FILE:
            continue
        written = item.name in values or item.name in places
        value = checked[item.name]
        about = textwrap.wrap(hints(TrainConfig)[item.name].__metadata__[0].help, 98)
        line = dump({item.name: value}).rstrip()
        shown = line if written else "\n".join(f"# {each}" for each in line.splitlines())
        parts.append("\n".join(f"## {each}" for each in about) + f"\n{shown}\n")
    return "\n".join(parts)


def write_starter(path: Path, values: Mapping[str, Any], force: bool = False) -> dict[str, Any]:
    """Write it to `path`; returns what is still to be filled in.

    Raises ConfigError when the file is there (unless `force`) or cannot be written, and as `starter`.
    """
    if path.exists() and not force:
        raise ConfigError(f"{path} is there already. Remedy: another name, or --force to replace it.")
    try:
        write_file(path, starter(values, path.name).encode())
    except OSError as error:
        raise refusal(str(path), error, "choose another file", ConfigError) from error
    missing = [name for name in ("model", "train") if name not in values and (name != "train" or "task" not in values)]
    return {"config": str(path), "to_fill_in": missing}
