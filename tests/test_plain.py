"""Small files from anywhere: no waiting, no links, strict JSON."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from zotune.plain import is_count, parse_json, read_plain


def test_reads_a_plain_file(tmp_path: Path) -> None:
    """Its bytes, up to the limit and not one more."""
    (tmp_path / "a").write_bytes(b"12345")
    assert read_plain(tmp_path / "a") == read_plain(tmp_path / "a", 5) == b"12345"
    with pytest.raises(OSError, match="has more than 4 bytes"):
        read_plain(tmp_path / "a", 4)


def test_refuses_the_rest_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe, a socket, a device, a folder, a link and a name that is none: OSError with a reason, without waiting."""
    (tmp_path / "a").write_bytes(b"1")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "device").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as there:
        monkeypatch.chdir(tmp_path)  # a socket's path must be short
        there.bind("socket")
        for name in ("pipe", "socket", "link", "device", ".", "nothing", "a\0b"):
            with pytest.raises(OSError) as found:
                read_plain(Path(name))
            assert found.value.strerror
    assert read_plain(tmp_path / "link", follow=True) == b"1"
    with pytest.raises(OSError, match="not a plain file"):
        read_plain(tmp_path / "device", follow=True)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}", b'{"a": NaN}', b"[-Infinity]", b"\xef\xbb\xbf{}",
        b'"\xff"',
        "{}".encode("utf-16"), "{}".encode("utf-32"),
    ],
)  # fmt: skip
def test_json_is_strict(data: bytes) -> None:
    """Depth, digits, NaN and other encodings are ValueError and nothing else."""
    with pytest.raises(ValueError):
        parse_json(data)


def test_json() -> None:
    """A value in UTF-8."""
    assert parse_json('{"ü": [1, 2.5, null, true]}'.encode()) == {"ü": [1, 2.5, None, True]}


def test_counts() -> None:
    """Whole numbers from 0; truth values and fractions are none."""
    assert is_count(0) and is_count(5, 5)
    assert not any(map(is_count, (True, -1, 1.0, "1", None, 2**63))) and not is_count(6, 5)
