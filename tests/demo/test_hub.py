"""Downloads from the hub are what was asked for, and transformers is quiet only meanwhile."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from zotune.demo.hub import quiet, snapshot


def test_quiet_puts_everything_back() -> None:
    """Verbosity, progress bars, warning filters and stderr are what they were, after an error too."""
    from transformers.utils import logging

    def settings() -> tuple[object, ...]:
        return logging.get_verbosity(), logging.is_progress_bar_enabled(), list(warnings.filters), sys.stderr

    before = settings()
    with pytest.raises(KeyError), quiet():
        assert settings() != before
        warnings.warn("unheard", stacklevel=1)
        raise KeyError
    assert settings() == before


def test_the_files_asked_for_are_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The repository, its kind and the patterns reach the hub's client; its folder is given back, its error too."""
    import huggingface_hub

    asked: list[Any] = []

    def download(repo: str, **named: Any) -> str:
        asked.append((repo, named))
        warnings.warn("a client talks", stacklevel=1)
        if repo == "none":
            raise FileNotFoundError(repo)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert snapshot("me/data", "dataset", ["*.json", "a/*"]) == tmp_path
    assert asked == [("me/data", {"repo_type": "dataset", "allow_patterns": ["*.json", "a/*"]})]
    with pytest.raises(FileNotFoundError, match="none"):
        snapshot("none", "model", [])
