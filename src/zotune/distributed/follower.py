"""What stands for the run folder and its journal in a process that writes nothing: process 0 alone does."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, final

from zotune import snapshot
from zotune.distributed.group import Group
from zotune.logged import is_metrics, lines_of
from zotune.records import Record, parse_header, parse_records
from zotune.run import RunPaths
from zotune.yaml12 import parse_mapping

if TYPE_CHECKING:
    from torch import Tensor

_LENGTHS = struct.Struct("<3Q")


@final
class FollowerFolder:
    """Reads as `RunFolder` does and writes nothing; `metrics` are those that process 0 has told of."""

    def __init__(self, paths: RunPaths, metrics: Sequence[Mapping[str, Any]] = ()) -> None:
        self.paths, self.path = paths, paths.folder
        self._metrics = [dict(row) for row in metrics]

    def log_metrics(self, row: Mapping[str, Any]) -> None:
        """Kept in memory: what is said at the end reads it."""
        self._metrics.append(dict(row))

    def log_timing(self, row: Mapping[str, Any]) -> None:
        """Nothing."""

    def metrics(self) -> list[dict[str, Any]]:
        """The lines so far."""
        return list(self._metrics)

    def cut_metrics(self, lines: int) -> None:
        """Keep the first `lines`."""
        self._metrics = self._metrics[:lines]

    def save_snapshot(self, step: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Nothing."""

    def latest_snapshot(self, max_step: int) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
        """The newest complete snapshot up to `max_step`, where the folder can be read from here."""
        return snapshot.latest(self.paths.snapshots, max_step)

    def __enter__(self) -> FollowerFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to close."""


@final
class FollowerJournal:
    """A journal that process 0 writes: `header` and `records` are what it held when the run went on."""

    size = 0

    def __init__(self, header: dict[str, Any], records: Sequence[Record] = ()) -> None:
        self.header, self.records = header, tuple(records)

    def append(self, record: Record) -> None:
        """Nothing."""

    def __enter__(self) -> FollowerJournal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to close."""


def tell(group: Group, paths: RunPaths) -> None:
    """Process 0: send the run's config, journal and metrics to the others."""
    files = (paths.config, paths.journal, paths.metrics)
    found = [file.read_bytes() if file.exists() else b"" for file in files]
    group.share(_LENGTHS.pack(*map(len, found)) + b"".join(found))


def told(group: Group, paths: RunPaths) -> tuple[dict[str, Any], FollowerFolder, FollowerJournal | None]:
    """The others: the values of the config, the folder, and the journal; None where the run has not begun."""
    data = group.share(b"")
    config, journal, _ = _LENGTHS.unpack_from(data)
    first = _LENGTHS.size + config
    values, _ = parse_mapping(data[_LENGTHS.size : first], str(paths.config))
    folder = FollowerFolder(paths, [row for row, _ in lines_of(data[first + journal :], is_metrics)])
    if not journal:
        return values, folder, None
    recorded = data[first : first + journal]
    header, start = parse_header(paths.journal, recorded)
    return values, folder, FollowerJournal(header, parse_records(paths.journal, recorded, start)[0])
