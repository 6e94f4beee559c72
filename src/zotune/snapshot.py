"""Snapshots of tensors: they only bound the time of a replay, so losing one loses nothing.

A snapshot is a folder `step-N` with `tensors.safetensors`, `meta.json` and, last, the marker `COMPLETE`
with the sizes of the other two. A folder without the marker is no snapshot; neither is one of which a part is no plain
file. torch is imported on use.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zotune.disk import why
from zotune.durable import json_line, sync_file, sync_folder, write_file
from zotune.errors import RunError
from zotune.plain import parse_json, read_plain

if TYPE_CHECKING:
    from torch import Tensor

TENSORS, META, MARKER = "tensors.safetensors", "meta.json", "COMPLETE"
KEEP = 2
_NAME = re.compile(r"step-[0-9]{10}")
_MOST = 2**16  # bytes of meta.json and the marker

_log = logging.getLogger(__name__)


def save(folder: Path, step: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Path:
    """Write snapshot `step` below `folder`, then delete all but the newest two complete ones.

    Snapshots of later steps are deleted too: they belong to a course that was left. Raises RunError when the
    disk refuses.
    """
    final = folder / f"step-{step:010d}"
    aside = folder / f".step-{step:010d}.{os.getpid()}.tmp"
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        _write_tensors(aside / TENSORS, tensors)
        write_file(aside / META, json_line(dict(meta)).encode())
        sizes = {name: (aside / name).stat().st_size for name in (TENSORS, META)}
        sync_folder(aside)
        if os.path.lexists(final):  # an unfinished one, or the same step again
            discard(final)
        os.rename(aside, final)
        sync_folder(folder)
        write_file(final / MARKER, json.dumps(sizes).encode())
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        reason = (why(error) or (error,))[0]
        raise RunError(
            f"the snapshot of step {step} cannot be written to {folder}: {reason}. Remedy: "
            f"free space there, then `zotune resume {folder.parent}`; the journal keeps every step."
        ) from error
    _prune(folder, step)
    return final


def latest(folder: Path, max_step: int) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
    """Step, tensors (on the CPU) and meta of the newest complete snapshot up to `max_step`; None without one.

    Snapshots without their marker, or that cannot be read, are skipped with a warning in the log.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    for step, path in sorted(_steps(folder).items(), reverse=True):
        if step > max_step:
            continue
        problem = _incomplete(path)
        if problem is None:
            try:
                meta = parse_json(read_plain(path / META, _MOST))
                if isinstance(meta, dict):
                    return step, load_file(path / TENSORS), meta
                problem = f"its {META} is no JSON object"
            except (OSError, ValueError, SafetensorError) as error:
                problem = str(error)
        _log.warning("%s is skipped: %s", path, problem)
    return None


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    seen: set[int] = set()
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        # The format refuses tensors that share storage; they are written as what they hold.
        plain[name] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    try:
        save_file(plain, path)
    except SafetensorError as error:  # how the library reports a full disk
        raise OSError(str(error)) from error
    sync_file(path)


def _steps(folder: Path) -> dict[int, Path]:
    """The snapshot folders below `folder` by step, complete or not."""
    if not folder.is_dir():
        return {}
    found = (path for path in folder.glob("step-*") if _NAME.fullmatch(path.name))
    return {int(path.name[5:]): path for path in found if path.is_dir() and not path.is_symlink()}


def _incomplete(path: Path) -> str | None:
    """Why a snapshot cannot be used; None for a complete one."""
    try:
        sizes = parse_json(read_plain(path / MARKER, _MOST))
        for name in (TENSORS, META):
            found = (path / name).lstat()
            if not stat.S_ISREG(found.st_mode):
                return f"{name} is not a plain file"
            if found.st_size != sizes[name]:
                return f"{name} does not have the size that {MARKER} tells"
    except FileNotFoundError as error:
        return f"it has no {Path(error.filename).name}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its {MARKER} cannot be read ({error})"
    return None


def discard(path: Path) -> None:
    """Delete a snapshot, its marker first: one that is half deleted must not look whole. Of a link only the link."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    if path.name != MARKER:
        discard(path / MARKER)
    shutil.rmtree(path, ignore_errors=True)


def _prune(folder: Path, newest: int) -> None:
    """Delete what is not needed, only after `newest` is complete. A failure here harms nothing."""
    steps = _steps(folder)
    complete = sorted((s for s in steps if s <= newest and _incomplete(steps[s]) is None), reverse=True)
    kept = set(complete[:KEEP])
    for step, path in steps.items():
        if step not in kept:
            discard(path)
    for path in folder.glob(".step-*.tmp"):  # left by a killed writer; there is only one writer
        shutil.rmtree(path, ignore_errors=True)
