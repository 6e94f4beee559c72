"""Writing a folder so that it appears under its name whole, or not at all. Needs only the standard library."""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zotune.durable import sync_file, sync_folder
from zotune.processes import is_gone


@contextmanager
def whole_folder(to: Path) -> Iterator[Path]:
    """Within the context write into the folder it gives; at the end that is synced and takes the place of `to`.

    After an error, a kill or a power cut `to` is what it was; what a killed process left beside it goes with the next
    call. (Between the two renames of a replacement `to` is missing; the next call puts it back.) Raises OSError.
    """
    to = to.absolute()
    _tidy(to)
    aside, old = (to.with_name(f".{to.name}.{os.getpid()}.{kind}") for kind in ("tmp", "old"))
    try:
        aside.mkdir(parents=True)
        yield aside
        for path in (*aside.rglob("*"), aside):
            sync_folder(path) if path.is_dir() else sync_file(path)
        if to.exists():
            os.rename(to, old)
        os.rename(aside, to)
        sync_folder(to.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        _restore(old, to)


def _restore(old: Path, to: Path) -> None:
    if old.exists() and not to.exists():
        os.rename(old, to)
    shutil.rmtree(old, ignore_errors=True)


def _tidy(to: Path) -> None:
    """Remove what processes that are gone left beside `to`."""
    for left in to.parent.glob(f".{glob.escape(to.name)}.*.*"):
        pid, kind = left.name.split(".")[-2:]
        if pid.isdecimal() and kind in ("tmp", "old") and is_gone(int(pid)):
            _restore(left, to) if kind == "old" else shutil.rmtree(left, ignore_errors=True)
