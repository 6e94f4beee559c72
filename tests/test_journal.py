"""The journal: round trips, and every way a file can be cut or damaged."""

from __future__ import annotations

import json
import logging
import resource
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest

from zotune.errors import JournalError, RunError
from zotune.journal import HashRecord, Journal, Record, StepRecord, read

HEADER = {"method": "mezo", "seed": 7, "scope": {"w.é": [2, 3]}}
HEADER_BYTES = 5 + 4 + len(json.dumps(HEADER, ensure_ascii=False, separators=(",", ":")).encode()) + 4
RECORDS: list[Record] = [
    StepRecord(0, (1e-6,), (0.6931471805599453, 0.7)),
    StepRecord(1, (1e-6,), (0.1 + 0.2, -0.0)),
    HashRecord(2, "ab" * 32),
    StepRecord(2, (1e-6, 2e-6), (1.0, 2.0, 3.0)),
    StepRecord(3, (5e-7,), tuple(i / 7 for i in range(300))),
    StepRecord(4, (), ()),
    StepRecord(2**32 - 1, (1e-7,), (float("inf"), 1e-320)),
]


def write(path: Path, records: list[Record] = RECORDS) -> list[int]:
    """Write a journal; return the file size after the header and after each record."""
    with Journal.create(path, HEADER) as journal:
        sizes = [path.stat().st_size]
        for record in records:
            journal.append(record)
            sizes.append(path.stat().st_size)
    return sizes


def test_round_trip_is_exact(tmp_path: Path) -> None:
    """Every record, float64 bit for bit, comes back; reading does not change the file."""
    path = tmp_path / "journal.zoj"
    sizes = write(path)
    before = path.read_bytes()
    header, records, torn = read(path)
    assert (header, records, torn) == (HEADER, RECORDS, 0)
    assert str(records[1]) == str(RECORDS[1])  # -0.0 keeps its sign
    assert path.read_bytes() == before
    assert sizes[0] == HEADER_BYTES


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


def test_truncated_at_every_byte(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Cut anywhere behind the header, the whole records before the cut remain and the journal can go on."""
    whole = tmp_path / "whole.zoj"
    sizes = write(whole, RECORDS[:4])
    data = whole.read_bytes()
    path = tmp_path / "cut.zoj"
    for length in range(sizes[0], len(data) + 1):
        path.write_bytes(data[:length])
        kept = sum(size <= length for size in sizes) - 1
        header, records, torn = read(path)
        assert (header, records, torn) == (HEADER, RECORDS[:kept], length - sizes[kept])
        caplog.clear()
        with caplog.at_level(logging.WARNING), Journal.append_to(path) as journal:
            assert journal.records == tuple(RECORDS[:kept])
            assert bool(caplog.records) == (torn > 0)
            journal.append(StepRecord(77, (1.0,), (2.0,)))
        assert read(path) == (HEADER, [*RECORDS[:kept], StepRecord(77, (1.0,), (2.0,))], 0)


def test_truncated_inside_the_header(tmp_path: Path) -> None:
    """A file that ends inside its header is a clear error at every length."""
    whole = tmp_path / "whole.zoj"
    sizes = write(whole, [])
    data = whole.read_bytes()
    path = tmp_path / "cut.zoj"
    for length in range(sizes[0]):
        path.write_bytes(data[:length])
        with pytest.raises(JournalError, match="Remedy"):
            Journal.append_to(path)
        assert path.read_bytes() == data[:length]


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


def test_a_corrupt_middle_is_never_cut(tmp_path: Path) -> None:
    """A damaged count in the middle fails with the offset and leaves the bytes alone."""
    path = tmp_path / "journal.zoj"
    sizes = write(path, RECORDS[:4])
    damaged = bytearray(path.read_bytes())
    damaged[sizes[0] + 1] = 255  # the count of losses now reaches far behind the end of the file
    path.write_bytes(damaged)
    with pytest.raises(JournalError, match=f"at byte {sizes[0]}"):
        Journal.append_to(path)
    assert path.read_bytes() == damaged


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


def test_missing_file(tmp_path: Path) -> None:
    """A journal that does not exist is named."""
    with pytest.raises(JournalError, match="nothing.zoj does not exist"):
        Journal.append_to(tmp_path / "nothing.zoj")


def test_create_refuses_to_overwrite(tmp_path: Path) -> None:
    """A second `create` on the same path fails and leaves the first journal alone."""
    path = tmp_path / "journal.zoj"
    write(path)
    before = path.read_bytes()
    with pytest.raises(RunError, match="exists"):
        Journal.create(path, {})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["journal.zoj"]


def test_create_in_a_missing_folder(tmp_path: Path) -> None:
    """A folder that is not there is a RunError, not a traceback."""
    with pytest.raises(RunError, match="cannot be written"):
        Journal.create(tmp_path / "no" / "journal.zoj", {})


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (StepRecord(0, (1.0,), (1.0,)), "step 0 cannot follow step 4"),
        (StepRecord(4, (1.0,), (1.0,)), "step 4 cannot follow step 4"),
        (StepRecord(-1, (1.0,), (1.0,)), "step -1"),
        (StepRecord(2**32, (1.0,), (1.0,)), "step 4294967296"),
        (StepRecord(5, (1.0,) * 1025, ()), "1025 learning rates"),
        (StepRecord(5, (1.0,), (1.0,) * 65537), "65537 losses"),
        (HashRecord(5, "xyz"), "not a sha256"),
    ],
)
def test_append_refuses_what_the_format_cannot_hold(tmp_path: Path, record: Record, message: str) -> None:
    """Records out of order or beyond the limits are refused before a byte is written."""
    path = tmp_path / "journal.zoj"
    sizes = write(path, [StepRecord(4, (1.0,), (1.0,))])
    with Journal.append_to(path) as journal, pytest.raises(JournalError, match=message):
        journal.append(record)
    assert path.stat().st_size == sizes[-1]


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


def test_full_disk_keeps_the_last_good_record(tmp_path: Path) -> None:
    """When the disk refuses in the middle of a record, the file ends with the record before it."""
    path = tmp_path / "journal.zoj"
    with Journal.create(path, HEADER) as journal:
        journal.append(RECORDS[0])
        good = path.read_bytes()
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(good) + 10, limits[1]))
        try:
            with pytest.raises(RunError, match="cannot be written.*zotune resume"):
                journal.append(RECORDS[1])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert path.read_bytes() == good
        with pytest.raises(RunError, match="closed"):
            journal.append(RECORDS[1])
    assert read(path) == (HEADER, RECORDS[:1], 0)


def test_size_is_the_file_size(tmp_path: Path) -> None:
    """`size` is right after create, append and reopening."""
    path = tmp_path / "journal.zoj"
    with Journal.create(path, HEADER) as journal:
        assert journal.size == path.stat().st_size
        journal.append(RECORDS[0])
        assert journal.size == path.stat().st_size
    with Journal.append_to(path) as journal:
        assert journal.size == path.stat().st_size


def test_sigkill_leaves_a_prefix(tmp_path: Path) -> None:
    """A writer killed with SIGKILL leaves all records that `append` returned from."""
    path = tmp_path / "journal.zoj"
    script = (
        "import sys; from zotune.journal import Journal, StepRecord\n"
        "journal = Journal.create(sys.argv[1], {})\n"
        "for step in range(10**6):\n"
        "    journal.append(StepRecord(step, (1e-6,), (0.5, 0.25)))\n"
        "    print(step, flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= 20:
            process.kill()
            break
    rest = process.stdout.read().split()
    process.wait()
    process.stdout.close()
    acknowledged = int(rest[-1]) if rest else int(line)
    _, records, _ = read(path)
    assert [r.step for r in records] == list(range(len(records)))
    assert len(records) >= acknowledged + 1
    with Journal.append_to(path) as journal:
        journal.append(StepRecord(len(records), (1e-6,), (0.5, 0.25)))
