"""One writer per run folder: a lock file with the owner's pid, host and start time.

A lock that the kernel drops would be simpler, but forked helpers inherit it and file systems differ. So the
owner is written down, and whether it still lives is looked up; the lock of a process that is gone is taken
over. Needs only the standard library.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, final

from zotune.durable import write_file
from zotune.errors import RunError

_log = logging.getLogger(__name__)


def process_started(pid: int) -> str | None:
    """What tells this process from a later one with the same pid; None when no such process runs.

    On Linux the boot and the clock ticks since it, so a clock that is set back changes nothing.
    """
    if pid <= 0:
        return None
    if Path("/proc/self/stat").exists():
        try:
            # The name in brackets may hold anything; the fields are counted from the last bracket.
            fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            return None
        if fields[0] in "ZXx":  # dead, only not yet collected by its parent
            return None
        with contextlib.suppress(OSError):
            return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}:{fields[19]}"
        return fields[19]
    answer = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """A short critical section between processes, so that two of them never recover the same stale lock."""
    try:
        import fcntl
    except ImportError:  # not on this system: the lock file alone must do
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems cannot lock a folder
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@final
class FolderLock:
    """The right to write in a folder. Held until `release`, or until the process is gone."""

    NAME = "lock"

    def __init__(self, path: Path, owner: dict[str, Any]):
        """Use `acquire`."""
        self._path = path
        self._owner = owner

    @classmethod
    def acquire(cls, folder: Path) -> FolderLock:
        """Take the lock of `folder`. Raises RunError when a living process has it or it is read-only."""
        path = folder / cls.NAME
        pid = os.getpid()
        owner = {"pid": pid, "host": socket.gethostname(), "started": process_started(pid)}
        try:
            with _alone(folder):
                _refuse_if_held(path)
                write_file(path, json.dumps(owner).encode())
        except OSError as error:
            raise RunError(
                f"{folder} cannot be written: {error.strerror}. Remedy: choose another --output-dir, or "
                "change its permissions."
            ) from error
        return cls(path, owner)

    def release(self) -> None:
        """Give the lock back. Harmless when it is gone or was taken over."""
        with contextlib.suppress(OSError):
            if _owner_of(self._path) == self._owner:
                self._path.unlink()


def _owner_of(path: Path) -> dict[str, Any] | None:
    """Who is named in a lock file; None when there is none; {} when it cannot be understood."""
    try:
        owner = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) and isinstance(owner.get("pid"), int) else {}


def _refuse_if_held(path: Path) -> None:
    owner = _owner_of(path)
    if owner is None:
        return
    if owner and owner.get("host") != socket.gethostname():
        raise RunError(
            f"{path.parent} is in use by process {owner['pid']} on another host ({owner.get('host')}), "
            f"which cannot be asked from here. Remedy: wait for it; if it is surely gone, delete {path}."
        )
    started = process_started(owner["pid"]) if owner else None
    if started is not None and started == owner.get("started"):
        raise RunError(
            f"{path.parent} is in use by process {owner['pid']}. Remedy: wait for it, stop it, or choose "
            "another folder."
        )
    _log.warning("%s: taking over the lock of process %s, which is gone", path.parent, owner.get("pid", "?"))
