"""The bytes of a journal: records to bytes and back, and what counts as a torn tail. Format: docs/journal.md.

Works on bytes in memory; `journal.py` does the files.
"""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from zotune.errors import JournalError
from zotune.plain import parse_json

MAGIC = b"ZOJ1\n"
MAX_HEADER_BYTES = 64 * 2**20
MAX_LRS = 1024
MAX_LOSSES = 65536
MAX_STEP = 2**32 - 1

_STEP, _HASH, _WIDE = 1, 2, 3  # the kinds of record; a wide step has not one lr, or more than 255 losses
_STEP_HEAD = struct.Struct("<BBI")  # kind, number of losses, step; then one lr
_WIDE_HEAD = struct.Struct("<BHII")  # kind, number of lrs, number of losses, step
_HASH_BODY = struct.Struct("<BI32s")  # kind, step, sha256
_U32 = struct.Struct("<I")
_MAX_RECORD = _WIDE_HEAD.size + 8 * (MAX_LRS + MAX_LOSSES) + 4
_SCAN_BUDGET = 64 * 2**20  # bytes that the search for a record behind damage may look at; a real torn tail needs few


@final
@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step: its number, one lr per parameter group, its losses (float64) in the order of evaluation."""

    step: int
    lrs: tuple[float, ...]
    losses: tuple[float, ...]


@final
@dataclass(frozen=True, slots=True)
class HashRecord:
    """`weights_sha256` (64 hex digits) after `step` steps were applied."""

    step: int
    sha256: str


Record = StepRecord | HashRecord


@final
class _Incomplete(Exception):
    """The bytes end before the record does."""


@final
class _Damaged(Exception):
    """The bytes are no record."""


def encode_header(header: dict[str, Any]) -> bytes:
    """Magic, length, header as UTF-8 JSON, its CRC-32. Raises JournalError for a header that is too large."""
    text = json.dumps(header, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    if len(text) > MAX_HEADER_BYTES:
        raise JournalError(f"the journal's header has {len(text)} bytes, over {MAX_HEADER_BYTES}. Remedy: shorten it.")
    return MAGIC + _U32.pack(len(text)) + text + _U32.pack(zlib.crc32(text))


def encode(record: Record) -> bytes:
    """The bytes of one record, CRC-32 included. Raises JournalError for a record beyond the limits."""
    if not 0 <= record.step <= MAX_STEP:
        raise JournalError(f"step {record.step} cannot be written to a journal. Remedy: use steps 0 to {MAX_STEP}.")
    if isinstance(record, HashRecord):
        try:
            digest = bytes.fromhex(record.sha256)
        except ValueError:
            digest = b""
        if len(digest) != 32:
            raise JournalError(f"{record.sha256!r} is not a sha256. Remedy: give 64 hex digits.")
        body = _HASH_BODY.pack(_HASH, record.step, digest)
    else:
        n_lrs, n_losses = len(record.lrs), len(record.losses)
        if n_lrs > MAX_LRS or n_losses > MAX_LOSSES:
            raise JournalError(
                f"step {record.step} has {n_lrs} learning rates and {n_losses} losses; a record holds "
                f"at most {MAX_LRS} and {MAX_LOSSES}. Remedy: use fewer groups, queries or micro-batches."
            )
        if n_lrs == 1 and n_losses <= 255:
            head = _STEP_HEAD.pack(_STEP, n_losses, record.step)
        else:
            head = _WIDE_HEAD.pack(_WIDE, n_lrs, n_losses, record.step)
        body = head + struct.pack(f"<{n_lrs + n_losses}d", *record.lrs, *record.losses)
    return body + _U32.pack(zlib.crc32(body))


def _size(data: bytes, at: int) -> int:
    """Bytes of the record that starts at `at`, from its kind and counts. A count allocates nothing."""
    kind = data[at]
    if kind == _HASH:
        return _HASH_BODY.size + 4
    if kind not in (_STEP, _WIDE):
        raise _Damaged(f"unknown kind of record {kind}")
    head = _STEP_HEAD if kind == _STEP else _WIDE_HEAD
    if at + head.size > len(data):
        raise _Incomplete
    n_lrs, n_losses = (1, data[at + 1]) if kind == _STEP else _WIDE_HEAD.unpack_from(data, at)[1:3]
    if n_lrs > MAX_LRS or n_losses > MAX_LOSSES:
        raise _Damaged(f"a count of {n_lrs} learning rates and {n_losses} losses, above the limits")
    return int(head.size + 8 * (n_lrs + n_losses) + 4)


def _decode(data: bytes, at: int, end: int) -> Record:
    """The record in data[at:end]. Raises _Damaged when its CRC-32 does not match."""
    body = data[at : end - 4]
    if zlib.crc32(body) != _U32.unpack_from(data, end - 4)[0]:
        raise _Damaged("a record whose CRC-32 does not match")
    if body[0] == _HASH:
        _, step, digest = _HASH_BODY.unpack(body)
        return HashRecord(step, digest.hex())
    if body[0] == _STEP:
        (_, _, step), n_lrs, head = _STEP_HEAD.unpack_from(body), 1, _STEP_HEAD.size
    else:
        (_, n_lrs, _, step), head = _WIDE_HEAD.unpack_from(body), _WIDE_HEAD.size
    values = struct.unpack(f"<{(len(body) - head) // 8}d", body[head:])
    return StepRecord(step, values[:n_lrs], values[n_lrs:])


def _record_follows(data: bytes, start: int) -> bool:
    """Whether a whole record begins in data[start:]: what lies before it is then damage, not a torn tail."""
    budget = _SCAN_BUDGET
    for at in range(start, len(data)):
        try:
            end = at + _size(data, at)
            if end <= len(data):
                budget -= end - at
                if budget < 0:
                    return True  # not decidable at a sensible cost: never cut what might be records
                _decode(data, at, end)
                return True
        except (_Incomplete, _Damaged):
            continue
    return False


def _torn(data: bytes, at: int, end: int | None) -> bool:
    """Whether data[at:] is what one interrupted append leaves: part of a record, or a damaged one."""
    if len(data) - at > _MAX_RECORD or (end is not None and end < len(data)):
        return False
    return not _record_follows(data, at + 1)


def parse_records(path: Path, data: bytes, at: int) -> tuple[list[Record], int]:
    """The records of data[at:] and the offset behind the last. Raises JournalError for a corrupt middle."""
    records: list[Record] = []
    last_step = -1
    while at < len(data):
        end: int | None = None
        try:
            end = at + _size(data, at)
            if end > len(data):
                end = None
                raise _Incomplete
            record = _decode(data, at, end)
        except (_Incomplete, _Damaged) as reason:
            if _torn(data, at, end):
                return records, at
            what = str(reason) or "a record with a damaged length"
            raise JournalError(
                f"{path} is corrupt at byte {at}: {what}, with more data behind it. "
                f"Remedy: restore the file from a copy; the {len(records)} records before byte {at} are good."
            ) from None
        if isinstance(record, StepRecord):
            if record.step <= last_step:
                raise JournalError(
                    f"{path} is corrupt at byte {at}: step {record.step} follows step {last_step}. "
                    f"Remedy: restore the file from a copy; two writers may have used it."
                )
            last_step = record.step
        records.append(record)
        at = end
    return records, at


def parse_header(path: Path, data: bytes) -> tuple[dict[str, Any], int]:
    """The header and the offset behind it."""
    start = len(MAGIC) + 4
    if data[: len(MAGIC)] != MAGIC:
        raise JournalError(
            f"{path} is not a zotune journal (it does not begin with {MAGIC!r}). Remedy: name a run's journal.zoj."
        )
    length = _U32.unpack_from(data, len(MAGIC))[0] if len(data) >= start else 0
    if length > MAX_HEADER_BYTES:
        raise JournalError(
            f"{path} is corrupt at byte {len(MAGIC)}: its header claims {length} bytes, the limit is "
            f"{MAX_HEADER_BYTES}. Remedy: restore the file from a copy."
        )
    end = start + length
    if len(data) < max(start, end) + 4:
        raise JournalError(
            f"{path} ends inside its header, after {len(data)} bytes. Remedy: start the run again; "
            "no step was recorded in this file."
        )
    text = data[start:end]
    if zlib.crc32(text) != _U32.unpack_from(data, end)[0]:
        raise JournalError(
            f"{path} is corrupt at byte {start}: the CRC-32 of its header does not match. "
            "Remedy: restore the file from a copy."
        )
    try:
        header = parse_json(text)
    except ValueError:
        header = None
    if not isinstance(header, dict):
        raise JournalError(
            f"{path} has a header that is not a JSON object in UTF-8. Remedy: restore the file from a copy."
        )
    return header, end + 4
