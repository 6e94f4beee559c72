"""The demo's cache folder and the extraction of single files."""

from __future__ import annotations

import io
import os
import tarfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from zotune.demo.cache import cache_folder, extract_zip_member, is_complete, publish, read_tar_member
from zotune.errors import UserError


def _build(folder: Path) -> str:
    (folder / "a.txt").write_text("hello")
    return "here"


def test_cache_folder_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The argument wins, then ZOTUNE_CACHE, then XDG_CACHE_HOME, then the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("ZOTUNE_CACHE", str(tmp_path / "own"))
    assert cache_folder(tmp_path / "given") == tmp_path / "given"
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("ZOTUNE_CACHE")
    assert cache_folder() == tmp_path / "xdg" / "zotune"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "zotune"


def test_publish_marks_complete_and_damage_is_seen(tmp_path: Path) -> None:
    """A published folder is complete for its recipe only, and no longer after one byte changed."""
    folder = publish(tmp_path / "x" / "data", "r/1", _build)
    assert is_complete(folder, "r/1")
    assert not is_complete(folder, "r/2")
    (folder / "a.txt").write_text("hellO")
    assert not is_complete(folder, "r/1")
    publish(folder, "r/1", _build)
    assert is_complete(folder, "r/1")
    assert [path.name for path in folder.parent.iterdir()] == ["data"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"recipe": "r", "files": {"../b": {"bytes": 1}}}'])
def test_a_foreign_manifest_is_not_complete(tmp_path: Path, text: str) -> None:
    """A manifest that is empty, of another shape, or names files elsewhere counts as incomplete."""
    (tmp_path / "MANIFEST.json").write_text(text)
    assert not is_complete(tmp_path, "r")


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    """An error inside the build passes through, and neither the folder nor its scratch stays."""

    def build(folder: Path) -> str:
        (folder / "half").write_text("x")
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        publish(tmp_path / "data", "r/1", build)
    assert list(tmp_path.iterdir()) == []


def test_a_refusing_disk_is_a_user_error(tmp_path: Path) -> None:
    """A cache path that runs through a file is named, with the variable to set."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="ZOTUNE_CACHE"):
        publish(tmp_path / "file" / "data", "r/1", _build)


def test_concurrent_publishers_agree(tmp_path: Path) -> None:
    """Eight calls at once all succeed and leave one whole folder."""

    def build(folder: Path) -> str:
        time.sleep(0.02)
        return _build(folder)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: publish(tmp_path / "data", "r/1", build), range(8)))
    assert is_complete(tmp_path / "data", "r/1")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_stale_scratch_is_removed_and_fresh_scratch_stays(tmp_path: Path) -> None:
    """What a killed call left two days ago goes; what another call may be writing now stays."""
    (tmp_path / ".data-old").mkdir()
    os.utime(tmp_path / ".data-old", (time.time() - 2 * 86400,) * 2)
    (tmp_path / ".data-new").mkdir()
    publish(tmp_path / "data", "r/1", _build)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".data-new", "data"]


def test_zip_takes_only_the_named_member(tmp_path: Path) -> None:
    """One file comes out; an absent one, a folder, one over the limit and a broken archive are errors."""
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("p/model", b"12345")
        packed.writestr("../evil", b"x")
        packed.mkdir("folder")
    extract_zip_member(archive, "p/model", tmp_path / "out", limit=5)
    assert (tmp_path / "out").read_bytes() == b"12345"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "out"]
    for number, member in enumerate(("absent", "folder/")):
        with pytest.raises(UserError, match=member):
            extract_zip_member(archive, member, tmp_path / f"o{number}", limit=5)
    with pytest.raises(UserError, match="larger than 4"):
        extract_zip_member(archive, "p/model", tmp_path / "o3", limit=4)
    archive.write_bytes(b"no zip")
    with pytest.raises(UserError, match="a.zip"):
        extract_zip_member(archive, "p/model", tmp_path / "o4", limit=5)


def test_tar_takes_only_regular_files() -> None:
    """A regular member is read; a link, an absent or too long one and a broken archive are errors."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as packed:
        info = tarfile.TarInfo("a/b")
        info.size = 3
        packed.addfile(info, io.BytesIO(b"abc"))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "a/b"
        packed.addfile(link)
    archive = buffer.getvalue()
    assert read_tar_member(archive, "a/b", limit=3) == b"abc"
    for member, limit in (("link", 9), ("absent", 9), ("a/b", 2)):
        with pytest.raises(UserError, match=member):
            read_tar_member(archive, member, limit)
    with pytest.raises(UserError):
        read_tar_member(b"no tar", "a/b", limit=9)
