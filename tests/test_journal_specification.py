"""A second reader, written from docs/journal.md alone: it must agree with the first on every file."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zotune.config import TrainConfig
from zotune.errors import JournalError
from zotune.journal import HashRecord, Journal, StepRecord
from zotune.records import parse_header, parse_records
from zotune.train import train
from zotune.watch import Quiet

LONGEST = 11 + 8 * (1024 + 65536) + 4


class Corrupt(Exception):
    """The file is no journal, or corrupt at this byte."""


def record_at(data: bytes, a: int) -> tuple[str, int | None, Any]:
    """("whole", end, record), or ("bad", end or None, None): the end where kind and counts are valid and it fits."""
    kind, left = data[a], len(data) - a
    if kind == 1 and left >= 2:
        head, lrs, losses = 6, 1, data[a + 1]
    elif kind == 3 and left >= 11:
        head, (lrs, losses) = 11, struct.unpack_from("<HI", data, a + 1)
        if lrs > 1024 or losses > 65536:
            return "bad", None, None
    elif kind == 2:
        head, lrs, losses = 5 + 32, 0, 0
    else:
        return "bad", None, None
    end = a + head + 8 * (lrs + losses) + 4
    if end > len(data):
        return "bad", None, None
    body = data[a : end - 4]
    if struct.unpack("<I", data[end - 4 : end])[0] != zlib.crc32(body):
        return "bad", end, None
    if kind == 2:
        return "whole", end, ("hash", struct.unpack_from("<I", body, 1)[0], body[5:].hex())
    step = struct.unpack_from("<I", body, head - 4)[0]
    numbers = struct.unpack(f"<{lrs + losses}d", body[head:])
    return "whole", end, ("step", step, numbers[:lrs], numbers[lrs:])


def read_by_specification(data: bytes) -> tuple[dict[str, Any], list[Any], int]:
    """Header, records, bytes of a torn tail."""
    if len(data) < 9 or data[:5] != b"ZOJ1\n":
        raise Corrupt(0)
    (length,) = struct.unpack_from("<I", data, 5)
    if length > 64 * 2**20 or len(data) < 9 + length + 4:
        raise Corrupt(5)
    text, a, records, last = data[9 : 9 + length], 9 + length + 4, [], -1
    if zlib.crc32(text) != struct.unpack_from("<I", data, a - 4)[0]:
        raise Corrupt(9)
    try:
        header = json.loads(text.decode(), parse_constant=int)  # int("NaN") is a ValueError
    except (ValueError, RecursionError):
        raise Corrupt(9) from None
    if not isinstance(header, dict):
        raise Corrupt(9)
    while a < len(data):
        state, end, record = record_at(data, a)
        if state == "bad":
            ends_inside = end is not None and end < len(data)
            behind = any(record_at(data, b)[0] == "whole" for b in range(a + 1, len(data)))
            if len(data) - a > LONGEST or ends_inside or behind:
                raise Corrupt(a)
            break
        if record[0] == "step":
            if record[1] <= last:
                raise Corrupt(a)
            last = record[1]
        records.append(record)
        assert end is not None
        a = end
    return header, records, len(data) - a


def plain(record: StepRecord | HashRecord) -> Any:
    if isinstance(record, HashRecord):
        return "hash", record.step, record.sha256
    return "step", record.step, record.lrs, record.losses


def agree(data: bytes) -> None:
    """Both readers find the same, or both call the file corrupt at the same byte."""
    path = Path("j.zoj")  # for the messages; nothing is written
    try:
        expected: Any = read_by_specification(data)
    except Corrupt as corrupt:
        with pytest.raises(JournalError) as found:
            parse_records(path, data, parse_header(path, data)[1])
        if corrupt.args[0] > 9:
            assert f"corrupt at byte {corrupt.args[0]}:" in str(found.value)
        return
    header, start = parse_header(path, data)
    records, good = parse_records(path, data, start)
    assert repr((header, list(map(plain, records)), len(data) - good)) == repr(expected)


def content(path: Path) -> bytes:
    """A journal with every kind of record."""
    with Journal.create(path, {"method": "mezo", "ü": [1, None]}) as journal:
        for record in (
            StepRecord(0, (1e-6,), (0.1 + 0.2, float("nan"))),
            HashRecord(1, "ab" * 32),
            StepRecord(1, (1e-6, -0.0), (1.0, 5e-324, 2.0)),
            StepRecord(2, (5e-7,), tuple(i / 7 for i in range(260))),
            StepRecord(7, (), ()),
            HashRecord(8, "cd" * 32),
            StepRecord(8, (1.0,), (2.0,)),
        ):
            journal.append(record)
    return path.read_bytes()


def test_a_real_run(config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    """The journal of a run, cut at every length behind its header."""
    train(config(snapshot_every=2, queries=2, weight_decay=0.1), Quiet())
    data = (config().output_dir / "journal.zoj").read_bytes()
    agree(data)
    header, records, torn = read_by_specification(data)
    assert header["method"] == "mezo" and torn == 0
    assert [record[1] for record in records if record[0] == "step"] == list(range(7))
    start = 9 + struct.unpack_from("<I", data, 5)[0] + 4
    for length in range(start - 2, len(data)):
        agree(data[:length])


def test_every_flipped_byte(tmp_path: Path) -> None:
    """Each byte of a journal with every kind of record, flipped."""
    data = content(tmp_path / "whole.zoj")
    for at in range(len(data)):
        agree(data[:at] + bytes([data[at] ^ 0x41]) + data[at + 1 :])


HEADERS: list[tuple[bytes, bool]] = [
    (b'{"a": 1}', True),
    (b' {"a":\n1} ', True),
    ('{"ü": "é"}'.encode(), True),
    (b"\xef\xbb\xbf{}", False),
    ("{}".encode("utf-16"), False),
    ("{}".encode("utf-16-le"), False),
    ("{}".encode("utf-32"), False),
    ("{}".encode("utf-32-be"), False),
    (b'{"a": "\xff"}', False),
    (b'{"a": NaN}', False),
    (b'{"a": [-Infinity]}', False),
    (b"[]", False),
    (b"{}\0", False),
    (b"", False),
]


@pytest.mark.parametrize(("text", "whole"), HEADERS, ids=repr)
def test_encodings_of_a_header(text: bytes, whole: bool) -> None:
    """UTF-8 without a byte order mark, and JSON as its standard has it: nothing else is a header."""
    data = b"ZOJ1\n" + struct.pack("<I", len(text)) + text + struct.pack("<I", zlib.crc32(text))
    agree(data)
    if not whole:
        with pytest.raises(Corrupt):
            read_by_specification(data)
        with pytest.raises(JournalError, match="not a JSON object in UTF-8. Remedy"):
            parse_header(Path("j.zoj"), data)


@pytest.mark.parametrize("examples", [150, pytest.param(5000, marks=pytest.mark.slow)])
def test_changed(tmp_path: Path, examples: int) -> None:
    """Bytes replaced, removed and added anywhere."""
    data = content(tmp_path / "whole.zoj")

    @settings(
        max_examples=examples, deadline=None, derandomize=True, database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )  # fmt: skip
    @given(st.integers(0, len(data)), st.integers(0, 80), st.binary(max_size=60))
    def change(at: int, removed: int, added: bytes) -> None:
        agree(data[:at] + added + data[at + removed :])

    change()
