"""The journal: the append-only file of what every step saw. Format: docs/journal.md.

A run is its base weights and this file. A record is on the disk before its update touches a weight, so a kill
at any instant leaves a readable prefix. Needs only the standard library. No pickle.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, final

from zotune.durable import write_all, write_file
from zotune.errors import JournalError, RunError
from zotune.records import (
    MAGIC,
    HashRecord,
    Record,
    StepRecord,
    encode,
    encode_header,
    parse_header,
    parse_records,
)

__all__ = ["HashRecord", "Journal", "Record", "StepRecord", "read"]

_log = logging.getLogger(__name__)


def _load(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            start = file.read(len(MAGIC))
            return start + file.read() if start == MAGIC else start  # never read a huge file that is no journal
    except FileNotFoundError:
        raise JournalError(f"{path} does not exist. Remedy: name a run folder that `zotune train` made.") from None
    except OSError as error:
        raise JournalError(f"{path} cannot be read: {error.strerror}. Remedy: check its permissions.") from error


def _read(path: Path) -> tuple[dict[str, Any], list[Record], int, int]:
    """Header, records, offset behind the last whole record, file size."""
    data = _load(path)
    header, start = parse_header(path, data)
    records, good = parse_records(path, data, start)
    return header, records, good, len(data)


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], list[Record], int]:
    """Read a journal without changing it: header, records, and the bytes of a torn tail (0 for a clean file).

    Raises JournalError, which names the byte, for a file that is no journal or is corrupt before its end.
    """
    header, records, good, size = _read(Path(path))
    return header, records, size - good


@final
class Journal:
    """A journal open for appending. One writer at a time: hold the run folder's lock."""

    def __init__(self, path: Path, descriptor: int, size: int, header: dict[str, Any], records: Sequence[Record]):
        """Use `create` or `append_to`."""
        self.path = path
        self.header = header
        self.records = tuple(records)
        self._size = size
        self._descriptor: int | None = descriptor
        self._last_step = max((r.step for r in records if isinstance(r, StepRecord)), default=-1)

    @classmethod
    def create(cls, path: str | os.PathLike[str], header: dict[str, Any]) -> Journal:
        """Start a journal. It appears under its name only when whole. Raises RunError when `path` exists."""
        path = Path(path)
        data = encode_header(header)
        if path.exists():
            raise RunError(f"{path} exists. Remedy: `zotune resume` it, or choose another folder.")
        try:
            write_file(path, data)
            descriptor = _open(path)
        except OSError as error:
            raise _write_error(path, error) from error
        return cls(path, descriptor, len(data), parse_header(path, data)[0], ())

    @classmethod
    def append_to(cls, path: str | os.PathLike[str]) -> Journal:
        """Open a journal to continue it. A torn tail is cut, with a warning in the log.

        Raises JournalError for a file that is no journal or is corrupt before its end.
        """
        path = Path(path)
        header, records, good, size = _read(path)
        try:
            descriptor = _open(path)
            if good < size:
                _log.warning("%s: cut %d bytes of an unfinished record at byte %d", path, size - good, good)
                os.ftruncate(descriptor, good)
                os.fsync(descriptor)
        except OSError as error:
            raise _write_error(path, error) from error
        return cls(path, descriptor, good, header, records)

    def append(self, record: Record) -> None:
        """Write one record; it is on the disk when this returns. Step numbers must rise.

        Raises RunError when the disk refuses; the file then still ends with the record before.
        """
        if self._descriptor is None:
            raise RunError(f"{self.path} is closed. Remedy: open it again with `Journal.append_to`.")
        data = encode(record)
        if isinstance(record, StepRecord) and record.step <= self._last_step:
            raise JournalError(
                f"step {record.step} cannot follow step {self._last_step} in {self.path}. "
                "Remedy: continue from the journal's last step."
            )
        try:
            write_all(self._descriptor, data)
            os.fsync(self._descriptor)
        except OSError as error:
            self._take_back()
            raise _write_error(self.path, error) from error
        self._size += len(data)
        if isinstance(record, StepRecord):
            self._last_step = record.step

    def _take_back(self) -> None:
        """After a failed write nobody knows what arrived: cut it off, and write no more to this file."""
        assert self._descriptor is not None
        try:
            os.ftruncate(self._descriptor, self._size)
        except OSError:
            _log.warning("%s: an unfinished record may be left; the next open cuts it", self.path)
        self.close()

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._size

    def close(self) -> None:
        """Close the file. Closing twice is harmless."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _open(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | getattr(os, "O_CLOEXEC", 0))


def _write_error(path: Path, error: OSError) -> RunError:
    return RunError(
        f"{path} cannot be written: {error.strerror}. Remedy: free space or permissions there, then "
        f"`zotune resume {path.parent}`; the steps recorded so far are kept."
    )
