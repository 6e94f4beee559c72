"""The user's pip as a program: its settings, and wheels that are fetched but never run."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from zotune.demo.cache import sha256_of
from zotune.demo.pip_client import download_wheel, pip_settings, run_pip
from zotune.errors import UserError


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the machine's pip configuration."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)


def test_settings_rank_as_in_pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The environment wins over [download], which wins over [global]; lists split at blanks."""
    file = tmp_path / "pip.conf"
    file.write_text(
        "[global]\nindex-url = http://a.invalid/simple\ntrusted-host = a.invalid\ntimeout = 90\n"
        "extra-index-url =\n  http://b.invalid\n  http://c.invalid\n"
        "[download]\nindex-url = http://d.invalid\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(file))
    monkeypatch.setenv("PIP_FIND_LINKS", "one two")
    found = pip_settings()
    assert found.indexes == ("http://d.invalid", "http://b.invalid", "http://c.invalid")
    assert found.find_links == ("one", "two")
    assert found.trusted_hosts == {"a.invalid"}
    assert found.timeout == 90.0
    monkeypatch.setenv("PIP_INDEX_URL", "http://e.invalid")
    assert pip_settings().indexes[0] == "http://e.invalid"
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert pip_settings().indexes == ()


def test_the_default_index_is_pips_own() -> None:
    """Without configuration the one index is an https address that pip itself names."""
    (index,) = pip_settings().indexes
    assert index.startswith("https://")


def test_download_wheel_checks_the_hash_and_never_builds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A wheel with the known hash is returned; another hash and a source archive are errors."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    wheel = shelf / "thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as packed:
        packed.writestr("thing-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n")
        packed.writestr("thing-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        packed.writestr("thing-1.0.dist-info/RECORD", "")
    (shelf / "source-1.0.tar.gz").write_bytes(b"never opened")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    monkeypatch.setenv("PIP_NO_BINARY", ":all:")
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    assert download_wheel("thing==1.0", sha256_of(wheel), tmp_path / "a").read_bytes() == wheel.read_bytes()
    with pytest.raises(UserError, match="not 000"):
        download_wheel("thing==1.0", "0" * 64, tmp_path / "b")
    with pytest.raises(UserError, match="No matching distribution found for source"):
        download_wheel("source==1.0", "0" * 64, tmp_path / "c")


def test_a_python_without_pip_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The remedy is named when the interpreter has no pip."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$0: No module named pip" >&2\nexit 1\n')
    python.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(python))
    with pytest.raises(UserError, match="ensurepip"):
        run_pip("list")


def test_a_folder_named_pip_is_not_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A package called pip in the current directory is not taken for pip."""
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip" / "__init__.py").write_text("")
    (tmp_path / "pip" / "__main__.py").write_text("print('impostor')")
    monkeypatch.chdir(tmp_path)
    assert run_pip("--version").startswith("pip ")
