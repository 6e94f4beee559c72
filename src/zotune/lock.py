"""One writer per run folder: a lock file with the owner's pid, host and start time.

A lock that the kernel drops would be simpler, but forked helpers inherit it and file systems differ. So the
owner is written down, and whether it still lives is looked up; the lock of a process that is gone is taken
over. Needs only the standard library.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, final

from zotune.disk import refusal
from zotune.durable import write_file
from zotune.errors import RunError
from zotune.plain import is_count, parse_json, read_plain
from zotune.processes import process_started

_MOST = 2**16  # bytes of a lock file
_log = logging.getLogger(__name__)


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
            raise refusal(str(folder), error, "change its permissions, or use another folder") from error
        return cls(path, owner)

    def release(self) -> None:
        """Give the lock back. Harmless when it is gone or was taken over."""
        with contextlib.suppress(OSError):
            if _owner_of(self._path) == self._owner:
                self._path.unlink()


def _owner_of(path: Path) -> dict[str, Any] | None:
    """Who is named in a lock file; None when there is none; {} when it cannot be understood."""
    try:
        owner = parse_json(read_plain(path, _MOST))
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    except OSError as error:
        if error.errno == errno.EFBIG:
            return {}
        raise  # somebody's, who lets nobody else read it
    return owner if isinstance(owner, dict) and is_count(owner.get("pid")) else {}


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
