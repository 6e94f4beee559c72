"""Rows of a data set on the hub, in the place of a file: `ORG/NAME`, `ORG/NAME/SUBSET`, each perhaps with `:SPLIT`."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from zotune.data.files import SUFFIXES, Row
from zotune.errors import UserError

_ID = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:/(?P<subset>[^/:]+))?(?::(?P<split>[^/]+))?")
# The splits of those that are named without one.
TRAIN, EVAL = "train", "validation"


@final
@dataclass(frozen=True, slots=True)
class HubRows:
    """One split of a data set on the hub. `split` may be a slice, such as train[:1000]."""

    name: str
    subset: str | None
    split: str

    def __str__(self) -> str:
        return f"{self.name}{'' if self.subset is None else f'/{self.subset}'}:{self.split}"

    def read(self) -> list[Row]:
        """Raises UserError where it cannot be had."""
        instead = f"name a file that is there, or another subset or split ({self.name}/SUBSET:SPLIT)"
        return load(self.name, self.subset, self.split, instead, f"{self} is no file here, and the data set")


def hub_rows(path: Path, split: str) -> HubRows | None:
    """What `path` names on the hub, `split` unless it says which; None for what is, or should be, a file here.

    A file or folder of that name wins. Names of data files, and paths that begin at the root, are never looked up.
    """
    found = _ID.fullmatch(path.as_posix())
    if found is None or path.suffix.lower() in SUFFIXES or os.path.exists(path):
        return None
    return HubRows(found["name"], found["subset"], found["split"] or split)


def placed(path: Path, split: str) -> Path:
    """The path so that it means the same from everywhere: absolute, or with its split where it is one of the hub."""
    found = hub_rows(path, split)
    return path.resolve() if found is None else Path(str(found))


def load(
    name: str, subset: str | None, split: str, instead: str, what: str = "the data set", revision: str | None = None
) -> list[Row]:
    """The rows of one split, as the package datasets loads them. what, instead: what messages say before the name and
    as another way. Raises UserError where they cannot be had.
    """
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"{what} {name} comes from the hub, and the package datasets is not installed. "
            f"Remedy: pip install 'zotune[data]', or {instead}."
        ) from None
    try:
        loaded: Any = datasets.load_dataset(name, subset, split=split, revision=revision)
    except Exception as error:  # what it raises offline, or for a data set that has moved, is of many kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise UserError(
            f"{what} {name} cannot be loaded from the hub: {reason}. Remedy: try again online, or {instead}."
        ) from error
    rows = [dict(row) for row in loaded]
    if not rows:
        raise UserError(f"{what} {name} has no rows in the split {split}. Remedy: name another split.")
    return rows
