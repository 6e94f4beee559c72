"""The journal: round trips, and every way a file can be cut or damaged."""

from __future__ import annotations

import logging
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from tests.journals import HEADER, HEADER_BYTES, RECORDS, write

from zotune.errors import JournalError, RunError
from zotune.journal import HashRecord, Journal, Record, StepRecord, read


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
