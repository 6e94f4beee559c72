"""Durable writes: the old content or the new, and strict JSON lines."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from zotune.durable import json_line, write_all, write_file


def test_write_file_replaces(tmp_path: Path) -> None:
    """New content replaces old content and nothing is left beside it."""
    path = tmp_path / "a.txt"
    write_file(path, b"one")
    write_file(path, b"three")
    assert path.read_bytes() == b"three"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    """A pipe, such as a device's, and a folder stay what they are."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(OSError, match="it is not a plain file"):
            write_file(tmp_path / name, b"x")
    assert (tmp_path / "pipe").is_fifo() and len(list(tmp_path.iterdir())) == 2


def test_a_failed_write_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the rename cannot happen, the old content stays and the file written aside is gone."""
    path = tmp_path / "a.txt"
    write_file(path, b"old")

    def refuse(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="No space"):
        write_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    """The next write to the same name clears it away; of a living process, and of another name, it stays."""
    gone, other, living = ".a.txt.4194305.tmp", ".ab.txt.4194305.tmp", f".a.txt.{os.getppid()}.tmp"
    for name in (gone, other, living, ".a.txt.mine.tmp"):
        (tmp_path / name).write_bytes(b"half")
    write_file(tmp_path / "a.txt", b"x")
    assert {path.name for path in tmp_path.iterdir()} == {"a.txt", other, living, ".a.txt.mine.tmp"}


def test_content_and_folder_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The content is synced before the rename, the folder after it."""
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def see_fsync(descriptor: int) -> None:
        events.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")
        fsync(descriptor)

    def see_replace(source: str, target: str) -> None:
        events.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", see_fsync)
    monkeypatch.setattr(os, "replace", see_replace)
    write_file(tmp_path / "a.txt", b"x")
    if Path("/proc/self/fd").exists():
        assert events == ["file", "rename", "folder"]
    else:
        assert len(events) == 3 and events[1] == "rename"


def test_write_all_survives_short_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system call that takes three bytes at a time still writes all of them."""
    got = b""

    def short(descriptor: int, data: memoryview) -> int:
        nonlocal got
        got += bytes(data[:3])
        return len(data[:3])

    monkeypatch.setattr(os, "write", short)
    write_all(0, b"0123456789")
    assert got == b"0123456789"


def test_json_line_is_strict_and_hides_no_nan() -> None:
    """NaN and infinities stay visible, paths become strings, floats come back bit for bit."""
    value = {"a": float("nan"), "b": [float("-inf"), 0.1 + 0.2], "c": Path("x"), 4: "é"}
    line = json_line(value)
    assert "\n" not in line
    assert json.loads(line) == {"a": "nan", "b": ["-inf", 0.1 + 0.2], "c": "x", "4": "é"}
