"""The demo's cache: built aside, marked complete last, verified by hash; and files out of archives."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
import time
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from zotune.errors import UserError

MANIFEST = "MANIFEST.json"
_CHUNK = 1 << 20
_STALE_SECONDS = 24 * 3600


def cache_folder(cache: Path | None = None) -> Path:
    """`cache`, else `$ZOTUNE_CACHE`, else `$XDG_CACHE_HOME/zotune`, else `~/.cache/zotune`."""
    if cache is not None:
        return Path(cache).expanduser()
    if own := os.environ.get("ZOTUNE_CACHE"):
        return Path(own).expanduser()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared).expanduser() / "zotune"
    return Path.home() / ".cache" / "zotune"


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_complete(folder: Path, recipe: str) -> bool:
    """Whether `folder` was made by `recipe` and its files still have their lengths and sha256s."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["recipe"] != recipe or not manifest["files"]:
            return False
        for name, seen in manifest["files"].items():
            path = folder / name
            if path.parent != folder or path.stat().st_size != seen["bytes"]:
                return False
            if sha256_of(path) != seen["sha256"]:
                return False
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return True


def publish(folder: Path, recipe: str, build: Callable[[Path], str]) -> Path:
    """Fill `folder` by `build(empty folder) -> source` and make it appear at once, with its manifest.

    The files are written beside `folder` under a unique name and renamed when whole, so a killed or a second
    concurrent call never leaves a half-filled `folder`. Raises UserError when the disk refuses.
    """
    aside = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(folder)
        aside.mkdir()
        source = build(aside)
        _write_manifest(aside, recipe, source)
        _replace(aside, folder, recipe)
    except OSError as error:
        raise UserError(
            f"The cache folder {folder.parent} cannot be used: {error}. "
            "Remedy: free some space (1.2 GB is enough), or set ZOTUNE_CACHE to a folder you can write to."
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def _write_manifest(folder: Path, recipe: str, source: str) -> None:
    files = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb+") as file:
            os.fsync(file.fileno())
        files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    text = json.dumps({"recipe": recipe, "source": source, "files": files}, indent=1)
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())


def _replace(aside: Path, folder: Path, recipe: str) -> None:
    if is_complete(folder, recipe):  # another process was faster, and its files are as good
        return
    old = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    try:
        folder.rename(old)
    except FileNotFoundError:
        pass
    try:
        aside.rename(folder)
    except OSError:
        if not is_complete(folder, recipe):
            raise
    shutil.rmtree(old, ignore_errors=True)


def _remove_stale(folder: Path) -> None:
    """Remove what killed calls left beside `folder` more than a day ago."""
    for left in folder.parent.glob(f".{folder.name}-*"):
        try:
            if time.time() - left.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
        except FileNotFoundError:  # its owner renamed it just now
            continue


def extract_zip_member(archive: Path, member: str, target: Path, limit: int) -> None:
    """Write one file of a zip to the new file `target`. UserError when absent or over `limit` bytes."""
    try:
        with zipfile.ZipFile(archive) as packed:
            info = packed.getinfo(member)
            if info.is_dir():
                raise KeyError(member)
            with packed.open(info) as source, target.open("xb") as sink:
                _copy(source, sink, limit, member)
    except (KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{archive.name} does not hold the file {member}. Remedy: fetch it again.") from error


def read_tar_member(archive: bytes, member: str, limit: int) -> bytes:
    """The bytes of one regular file of a tar (any compression). UserError if absent or over `limit`."""
    try:
        with tarfile.open(fileobj=io.BytesIO(archive)) as packed:
            info = packed.getmember(member)
            source = packed.extractfile(info) if info.isreg() else None
            if source is None:
                raise KeyError(member)
            sink = io.BytesIO()
            _copy(source, sink, limit, member)
            return sink.getvalue()
    except (KeyError, tarfile.TarError, EOFError) as error:
        raise UserError(f"The archive does not hold the file {member}. Remedy: fetch it again.") from error


def _copy(source: IO[bytes], sink: IO[bytes], limit: int, name: str) -> None:
    # The header's length is only a claim, so the bytes that really arrive are counted.
    total = 0
    while chunk := source.read(_CHUNK):
        total += len(chunk)
        if total > limit:
            raise UserError(f"{name} is larger than {limit} bytes. Remedy: fetch it again from another index.")
        sink.write(chunk)
