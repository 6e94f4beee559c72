"""The run folder: where everything of one training run lies, and who may write there.

config.yaml     the resolved config; `zotune train --config` takes it again
journal.zoj     the run itself (journal.py)
start.safetensors  first values of a prefix (virtual_tokens.py); other scopes have none
metrics.jsonl   one JSON object per line, without wall-clock values: a resumed run ends with the same bytes
timing.jsonl    the wall-clock values
snapshots/      tensors every so many steps (snapshot.py)
lock            the process that writes (lock.py)
undone/         what `zotune undo` took away, each a run folder (history/undo.py)
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, final

from zotune import snapshot
from zotune.disk import refusal
from zotune.durable import json_line, sync_folder, tidy, write_all, write_file
from zotune.errors import JournalError, RunError, UserError
from zotune.header import check_parts
from zotune.journal import Record
from zotune.journal import read as read_journal
from zotune.lock import FolderLock
from zotune.logged import metrics_of

if TYPE_CHECKING:
    from torch import Tensor


@final
class RunPaths:
    """The names inside a run folder. Reading needs no lock."""

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = Path(folder)
        self.config = self.folder / "config.yaml"
        self.journal = self.folder / "journal.zoj"
        self.start = self.folder / "start.safetensors"
        self.metrics = self.folder / "metrics.jsonl"
        self.timing = self.folder / "timing.jsonl"
        self.snapshots = self.folder / "snapshots"
        self.undone = self.folder / "undone"

    def holds_run(self) -> bool:
        """Whether a run has begun here. What is left of one stopped before its first step does not count."""
        return _has_records(self.journal) or self.snapshots.exists() or any(row["step"] > 0 for row in self.logged())

    def logged(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, parsed. Unfinished or damaged ones are left out (logged.py)."""
        return [row for row, _ in metrics_of(self.metrics)]

    def recorded(self) -> tuple[dict[str, Any], list[Record], int]:
        """The journal: header, records, bytes of a torn tail. Raises JournalError; so does an odd header."""
        found = read_journal(self.journal)
        check_parts(found[0])
        return found

    def check(self) -> RunPaths:
        """Itself, if this is a run's folder. Raises RunError otherwise."""
        if not self.folder.is_dir():
            raise RunError(f"{self.folder} is not a folder. Remedy: name a run folder that `zotune train` made.")
        if not self.journal.exists() and (self.folder / "config.json").exists():
            raise RunError(
                f"{self.folder} is a model, not a run. Remedy: --model {self.folder}, where a model is taken."
            )
        if not self.journal.exists():
            raise RunError(
                f"{self.folder} holds no run: it has no {self.journal.name}. Remedy: name a folder that "
                "`zotune train` made, or start the run again with `zotune train`."
            )
        if not self.config.exists():
            raise RunError(f"{self.folder} has no {self.config.name}. Remedy: restore it from a copy.")
        self.refuse_links()
        return self

    def refuse_links(self) -> None:
        """Raises RunError when a file of the run is a link, a pipe or a device: a run that came from somebody else must
        neither lead out of its folder nor keep a reader waiting.
        """
        files = (self.config, self.journal, self.start, self.metrics, self.timing, self.folder / FolderLock.NAME)
        for path in files:
            _refuse_unless(stat.S_ISREG, "a plain file", path)
        for path in (self.snapshots, self.undone):
            _refuse_unless(stat.S_ISDIR, "a folder", path)


@final
class RunFolder:
    """A run folder open for writing, by one process at a time. Use as a context manager, or call `close`."""

    def __init__(self, paths: RunPaths, lock: FolderLock):
        """Use `create` or `open`."""
        self.paths = paths
        self.path = paths.folder
        self._lock = lock

    @classmethod
    def create(cls, path: str | os.PathLike[str], config: str) -> RunFolder:
        """Make the folder of a new run, take its lock and write `config` (YAML text).

        Raises RunError, before any work, when the folder holds a run, is in use or cannot be written.
        """
        paths = RunPaths(path)
        _refuse_existing(paths)
        try:
            new = [folder for folder in (paths.folder, *paths.folder.parents) if not folder.exists()]
            paths.folder.mkdir(parents=True, exist_ok=True)
            for folder in new:
                sync_folder(folder.parent)
        except OSError as error:
            raise _write_error(paths.folder, error) from error
        lock = FolderLock.acquire(paths.folder)
        try:
            _refuse_existing(paths)  # another process may have made one before the lock was ours
            # Of a run that was stopped before its first step.
            for left in (paths.journal, paths.start, paths.metrics, paths.timing):
                left.unlink(missing_ok=True)
            write_file(paths.config, config.encode())
        except OSError as error:
            lock.release()
            raise _write_error(paths.config, error) from error
        except BaseException:
            lock.release()
            raise
        return cls(paths, lock)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RunFolder:
        """Take the lock of an existing run, to continue it. Raises RunError when it is missing or in use."""
        paths = RunPaths(path).check()
        lock = FolderLock.acquire(paths.folder)
        for each in (paths.config, paths.journal, paths.start, paths.metrics):
            tidy(each)
        return cls(paths, lock)

    def log_metrics(self, row: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl. `row` has "step" (int) and no wall-clock values."""
        if not isinstance(row.get("step"), int):
            raise TypeError("a metrics row needs an integer 'step'")
        _append_line(self.paths.metrics, row)

    def log_timing(self, row: Mapping[str, Any]) -> None:
        """Append one line to timing.jsonl."""
        _append_line(self.paths.timing, row)

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, parsed. Unfinished or damaged ones are left out."""
        return self.paths.logged()

    def cut_metrics(self, lines: int) -> None:
        """Keep the first `lines` of `metrics()`, byte for byte.

        Call it when a run resumes: what comes behind is written again, so the file ends equal to an undisturbed run's.
        """
        path = self.paths.metrics
        text = b"".join(line for _, line in metrics_of(path)[:lines])
        if path.exists() and path.read_bytes() != text:
            try:
                write_file(path, text)
            except OSError as error:
                raise _write_error(path, error) from error

    def save_snapshot(self, step: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Path:
        """Write a snapshot (see snapshot.save); the newest two are kept."""
        return snapshot.save(self.paths.snapshots, step, tensors, meta)

    def latest_snapshot(self, max_step: int) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
        """The newest complete snapshot up to `max_step` (see snapshot.latest)."""
        return snapshot.latest(self.paths.snapshots, max_step)

    def close(self) -> None:
        """Release the lock. Closing twice is harmless."""
        self._lock.release()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _refuse_unless(is_kind: Callable[[int], bool], kind: str, path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not is_kind(mode):
        raise RunError(f"{path} is not {kind}. Remedy: put {kind} there; a run does not reach out of its folder.")


def _refuse_existing(paths: RunPaths) -> None:
    if paths.folder.exists() and not paths.folder.is_dir():
        raise RunError(f"{paths.folder} is a file. Remedy: choose another --output-dir.")
    if paths.holds_run():
        raise RunError(
            f"{paths.folder} holds a run already. Remedy: `zotune resume {paths.folder}`, or choose another "
            "--output-dir."
        )


def _has_records(journal: Path) -> bool:
    """Whether a journal tells of a step. One that cannot be read may."""
    if not journal.exists():
        return False
    try:
        return bool(read_journal(journal)[1])
    except JournalError:
        return True


def _append_line(path: Path, row: Mapping[str, Any]) -> None:
    data = (json_line(dict(row)) + "\n").encode()
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            write_all(descriptor, data)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _write_error(path, error) from error


def _write_error(path: Path, error: OSError) -> UserError:
    return refusal(str(path), error, "change its permissions, or choose another --output-dir")
