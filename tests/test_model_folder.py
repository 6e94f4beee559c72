"""Saving a model where others read it: whole or not at all, and nothing is replaced unasked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from zotune.config import TrainConfig
from zotune.errors import RunError
from zotune.load import load_model, load_tokenizer
from zotune.model_folder import refuse_filled, save_folder

Config = Callable[..., TrainConfig]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_folder_that_is_filled_is_refused(tmp_path: Path) -> None:
    """A file always, a folder with content unless it is forced; one that is empty or not there yet is free."""
    (tmp_path / "file").write_text("x")
    for force in (False, True):
        with pytest.raises(RunError, match="file is a file. Remedy: name a folder."):
            refuse_filled(tmp_path / "file", force)
        refuse_filled(tmp_path / "none", force)
    with pytest.raises(RunError, match="is not empty. Remedy: name another folder, or pass --force to replace it."):
        refuse_filled(tmp_path, False)
    refuse_filled(tmp_path, True)
    (tmp_path / "empty").mkdir()
    refuse_filled(tmp_path / "empty", False)


def test_a_saved_model_is_the_model(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers reads weights and tokenizer back; force leaves nothing of what was there."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes").write_text("mine")
    model, tokenizer = load_model(config()), load_tokenizer(config())
    with pytest.raises(RunError, match="is not empty"):
        save_folder(model, tokenizer, "out")
    assert names(tmp_path / "out") == {"notes"}
    assert save_folder(model, tokenizer, "out", force=True) == tmp_path / "out"
    assert "notes" not in names(tmp_path / "out") and names(tmp_path) == {"out"}
    found: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    same = [torch.equal(p, q) for p, q in zip(found.parameters(), model.parameters(), strict=True)]
    assert same and all(same)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").tokenize("good film") == ["good", "film"]


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), SafetensorError("I/O error: No space left on device (os error 28)")],
)
def test_a_full_disk_leaves_what_was_there(config: Config, tmp_path: Path, error: Exception) -> None:
    """However the library says it: one sentence, and the folder is what it was before."""

    class Half:
        def save_pretrained(self, folder: Path) -> None:
            (folder / "half").write_text("x")
            raise error

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes").write_text("mine")
    with pytest.raises(RunError, match="out cannot be written: .*No space left on device. Remedy: free space"):
        save_folder(load_model(config()), Half(), tmp_path / "out", force=True)
    assert names(tmp_path / "out") == {"notes"} and names(tmp_path) == {"out"}
