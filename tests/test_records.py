"""The bytes of records: the documented layout, and what damage or hostile bytes lead to."""

from __future__ import annotations

import json
import struct
import time
import zlib
from pathlib import Path

import pytest
from tests.journals import HEADER, RECORDS, write

from zotune import records
from zotune.errors import JournalError
from zotune.journal import Record, StepRecord, read
from zotune.records import encode, encode_header, parse_header, parse_records


def test_bytes_are_the_documented_layout(tmp_path: Path) -> None:
    """The layout of docs/journal.md, built here by hand, is what the file holds."""
    path = tmp_path / "journal.zoj"
    write(path, [RECORDS[0], RECORDS[2], RECORDS[3]])
    text = json.dumps(HEADER, ensure_ascii=False, separators=(",", ":")).encode()
    bodies = [
        struct.pack("<BBI3d", 1, 2, 0, 1e-6, 0.6931471805599453, 0.7),
        struct.pack("<BI", 2, 2) + b"\xab" * 32,
        struct.pack("<BHII5d", 3, 2, 3, 2, 1e-6, 2e-6, 1.0, 2.0, 3.0),
    ]
    expected = b"ZOJ1\n" + struct.pack("<I", len(text)) + text + struct.pack("<I", zlib.crc32(text))
    for body in bodies:
        expected += body + struct.pack("<I", zlib.crc32(body))
    assert path.read_bytes() == expected


def test_a_plain_step_takes_34_bytes(tmp_path: Path) -> None:
    """One learning rate and two losses fit into 34 bytes."""
    sizes = write(tmp_path / "journal.zoj", [StepRecord(10**6, (1e-6,), (0.5, 0.6))])
    assert sizes[1] - sizes[0] == 34


def test_every_flipped_byte_is_seen(tmp_path: Path) -> None:
    """No single flipped byte gives other records; only the last record may be taken for a torn tail."""
    path = tmp_path / "journal.zoj"
    sizes = write(path)
    data = path.read_bytes()
    starts = sizes[:-1]
    for at in range(len(data)):
        for mask in (0xFF, 0x01, 0x80):
            path.write_bytes(data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :])
            try:
                _, records, torn = read(path)
            except JournalError as error:
                if at >= sizes[0]:
                    assert f"at byte {max(s for s in starts if s <= at)}" in str(error)
                continue
            assert at >= starts[-1], f"byte {at} flipped by {mask} went unnoticed"
            assert (records, torn) == (RECORDS[:-1], len(data) - starts[-1])


@pytest.mark.parametrize("tail", [b"\0" * 34, b"\0", b"\xff" * 300, b"\x01\x02\x03"])
def test_what_a_power_cut_leaves_is_cut(tmp_path: Path, tail: bytes) -> None:
    """Zeros or rubbish in place of the last record, as an unsynced tail can hold, are a torn tail."""
    path = tmp_path / "journal.zoj"
    write(path, RECORDS[:2])
    path.write_bytes(path.read_bytes() + tail)
    assert read(path) == (HEADER, RECORDS[:2], len(tail))


def test_huge_counts_do_not_allocate(tmp_path: Path) -> None:
    """A header or a record that claims gigabytes is refused from its counts, within a small address space."""
    header = tmp_path / "header.zoj"
    header.write_bytes(b"ZOJ1\n" + struct.pack("<I", 2**32 - 1) + b"{}")
    with pytest.raises(JournalError, match="4294967295 bytes"):
        read(header)
    path = tmp_path / "journal.zoj"
    write(path, RECORDS[:1])
    body = struct.pack("<BHII", 3, 65535, 2**32 - 1, 5)
    path.write_bytes(path.read_bytes() + body)  # alone at the end: nothing behind it, so it is a torn tail
    assert read(path)[1:] == (RECORDS[:1], len(body))
    path.write_bytes(path.read_bytes() + bytes(2**20))  # longer than any record: not one interrupted append
    with pytest.raises(JournalError, match="above the limits"):
        read(path)


def test_hostile_tail_is_bounded_in_time(tmp_path: Path) -> None:
    """A tail made of beginnings of large records ends in an error, not in a search without end."""
    path = tmp_path / "journal.zoj"
    write(path, RECORDS[:1])
    path.write_bytes(path.read_bytes() + b"\x09" + struct.pack("<BHII", 3, 100, 20000, 5) * 30000)
    start = time.perf_counter()
    with pytest.raises(JournalError):
        read(path)
    assert time.perf_counter() - start < 20


@pytest.mark.parametrize("text", [b"[]", b"{", b"\xff", b"[" * 100000])
def test_header_that_is_no_object(tmp_path: Path, text: bytes) -> None:
    """A header with a right CRC that is not a JSON object is a JournalError, however deep it nests."""
    path = tmp_path / "journal.zoj"
    path.write_bytes(b"ZOJ1\n" + struct.pack("<I", len(text)) + text + struct.pack("<I", zlib.crc32(text)))
    with pytest.raises(JournalError, match="not a JSON object"):
        read(path)


@pytest.mark.parametrize("content", [b"", b"ZOJ", b"PK\x03\x04 something else"])
def test_not_a_journal(tmp_path: Path, content: bytes) -> None:
    """An empty file, half a magic, another format: a clear error."""
    path = tmp_path / "journal.zoj"
    path.write_bytes(content)
    with pytest.raises(JournalError, match="not a zotune journal"):
        read(path)


def test_read_refuses_steps_that_do_not_rise(tmp_path: Path) -> None:
    """A file in which two writers interleaved is corrupt, and the message says where."""
    path = tmp_path / "journal.zoj"
    sizes = write(path, RECORDS[:2])
    data = path.read_bytes()
    path.write_bytes(data + data[sizes[0] : sizes[1]])
    with pytest.raises(JournalError, match=f"at byte {sizes[2]}: step 0 follows step 1"):
        read(path)


def test_largest_record(tmp_path: Path) -> None:
    """A record at the limits round-trips."""
    path = tmp_path / "journal.zoj"
    record = StepRecord(1, tuple(float(i) for i in range(1024)), tuple(i / 3 for i in range(65536)))
    write(path, [record])
    assert read(path)[1] == [record]


@pytest.mark.parametrize("record", RECORDS)
def test_a_record_alone_comes_back(record: Record) -> None:
    """Bytes to a record and back, wherever it begins; the offset behind it is the next one's."""
    data = encode(record)
    found, end = parse_records(Path("j"), b"xyz" + data, 3)
    assert found == [record] and end == 3 + len(data) and str(found[0]) == str(record)
    assert parse_records(Path("j"), data[:-1], 0) == ([], 0) and parse_records(Path("j"), b"", 0) == ([], 0)


def test_one_lr_and_few_losses_take_the_short_form() -> None:
    """Up to 255 losses of one group; more of either, or none, take the wide one, 5 bytes longer."""
    for lrs, losses, kind in ((1, 0, 1), (1, 255, 1), (1, 256, 3), (0, 1, 3), (2, 1, 3)):
        data = encode(StepRecord(7, (0.5,) * lrs, (0.25,) * losses))
        assert (data[0], len(data)) == (kind, {1: 6, 3: 11}[kind] + 8 * (lrs + losses) + 4)


def test_a_header_beyond_the_limit_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written that could not be read; numbers that JSON has not are refused as well."""
    monkeypatch.setattr(records, "MAX_HEADER_BYTES", 20)
    assert parse_header(Path("j"), encode_header({"a": "é"})) == ({"a": "é"}, 5 + 4 + 10 + 4)
    with pytest.raises(JournalError, match="the journal's header has 28 bytes, over 20. Remedy: shorten it."):
        encode_header({"a": "x" * 20})
    with pytest.raises(ValueError):
        encode_header({"a": float("nan")})
