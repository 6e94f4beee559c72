"""`zotune doctor`: what is wrong is found, with its remedy."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from zotune import doctor
from zotune.doctor import examine
from zotune.versions import Old


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is compiled."""
    with warnings.catch_warnings():  # the compiler's own imports warn
        warnings.simplefilter("ignore")
        from zotune.kernels import compiled
    monkeypatch.setattr(compiled, "warm_up", lambda: None)


def named(name: str) -> dict[str, Any]:
    return next(each for each in examine()["findings"] if each["name"] == name)


def test_versions_and_figures() -> None:
    """The versions are those of the libraries, and every finding says something."""
    assert torch.__version__.split("+")[0] in named("versions")["value"]
    assert all(each["value"] for each in examine()["findings"])


def test_old_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is too old is named with the command that mends it, and then all is not well."""
    monkeypatch.setattr(doctor, "outdated", lambda: [Old("transformers", "4.40.0", "5")])
    assert named("versions")["remedy"].endswith("Remedy: pip install -U 'transformers>=5'.")
    assert "transformers 4.40.0 is installed" in named("versions")["remedy"] and examine()["ok"] is False


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """More threads than cores is something to change, and then all is not well."""
    monkeypatch.setattr(doctor.os, "sched_getaffinity", lambda _: {0}, raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert named("processor")["remedy"].startswith("--threads 1") and examine()["ok"] is False


def test_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler that fails is named, with its reason; so is the switch."""

    def fail() -> None:
        raise RuntimeError("no compiler\nmore")

    monkeypatch.delenv("ZOTUNE_KERNELS", raising=False)
    monkeypatch.setattr("zotune.kernels.compiled.warm_up", fail)
    found = named("fast kernels")
    assert "(no compiler)" in found["value"] and "g++" in found["remedy"]
    monkeypatch.setenv("ZOTUNE_KERNELS", "eager")
    assert "unset ZOTUNE_KERNELS" in named("fast kernels")["remedy"]


def test_disk_and_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A full disk and the size of the cache are told."""
    monkeypatch.setenv("ZOTUNE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "x").write_bytes(b"x" * 5000)
    assert "5 kB used" in named("cache")["value"]
    monkeypatch.setattr(doctor, "free_disk_bytes", lambda _: 10)
    assert "free space" in named("disk here")["remedy"]
