"""Writing small files so that a kill or a power cut leaves the old content or the new, never a mixture.

Needs only the standard library.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import math
import os
from pathlib import Path
from typing import Any

from zotune.processes import is_gone


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable: a new or renamed file is only safe once its folder is synced."""
    flags = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0)
    try:
        descriptor = os.open(folder, flags)
    except PermissionError:  # Windows cannot open a folder; it has nothing to sync there either
        if os.name == "nt":
            return
        raise
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make the content of a file that another library wrote durable."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of `data`; one `os.write` may take only a part of it. Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def write_file(path: Path, data: bytes) -> None:
    """Replace `path` by `data`: written aside, synced, renamed, folder synced. Raises OSError.

    What is there and is no file (a device, a pipe, a folder) is not replaced.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is not a plain file", str(path))
    tidy(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            write_all(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def tidy(path: Path) -> None:
    """Delete what processes that are gone left of a `write_file` to `path`."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        pid = left.name.split(".")[-2]
        if pid.isdecimal() and is_gone(int(pid)):
            with contextlib.suppress(OSError):
                left.unlink()


def json_line(value: Any) -> str:
    """`value` as one line of strict JSON. NaN and infinities become "nan", "inf", "-inf": never 0 or null."""
    return json.dumps(_strict(value), ensure_ascii=False, allow_nan=False)


def _strict(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value
