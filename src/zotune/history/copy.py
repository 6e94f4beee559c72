"""A copy of a run, also of one that is being written: it resumes, replays and branches like the run. Needs no torch."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

from zotune.aside import whole_folder
from zotune.disk import refusal
from zotune.errors import RunError
from zotune.history.steps import count_steps
from zotune.journal import read as read_journal
from zotune.run import RunPaths
from zotune.snapshot import MARKER


def copy(run: str | Path, to: Path, snapshots: bool = True) -> dict[str, Any]:
    """Copy the run to the folder `to`, which is there whole or not at all. Returns to, steps and bytes.

    Without `snapshots` it is kilobytes; they only shorten a resume. The journal is copied last, so it holds every step
    that the other files tell of, up to its last whole record. Raises RunError for a folder `to` with content.
    """
    paths = RunPaths(run).check()
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise RunError(f"{to} is not empty. Remedy: name another folder.")
    try:
        with whole_folder(to) as aside:
            for path in (paths.config, paths.start, paths.metrics, paths.timing):
                if path.exists():
                    shutil.copyfile(path, aside / path.name)
            for folder in sorted(paths.snapshots.glob("step-*")) if snapshots else ():
                _snapshot(folder, aside / paths.snapshots.name / folder.name)
            data = paths.journal.read_bytes()
            (aside / paths.journal.name).write_bytes(data)
            _, records, torn = read_journal(aside / paths.journal.name)
            (aside / paths.journal.name).write_bytes(data[: len(data) - torn])
            count = sum(path.stat().st_size for path in aside.rglob("*") if path.is_file())
    except OSError as error:
        raise refusal(str(to), error, "choose another folder") from error
    return {"to": str(to), "steps": count_steps(records), "bytes": count}


def _snapshot(folder: Path, to: Path) -> None:
    """One snapshot, if it is complete and stays until it is copied: its writer deletes older ones."""
    if (folder / MARKER).exists() and not folder.is_symlink():
        with contextlib.suppress(FileNotFoundError, shutil.Error):
            shutil.copytree(folder, to, symlinks=True)
            if (folder / MARKER).exists():
                return
        shutil.rmtree(to, ignore_errors=True)
