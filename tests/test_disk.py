"""A disk that refuses: one sentence whatever the library, and advice that fits the reason."""

from __future__ import annotations

import errno
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from zotune.disk import is_full, refusal, why, written
from zotune.errors import ConfigError, DataError, RunError


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes, as on a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_full_is_told_from_forbidden() -> None:
    """No space, no quota and a limit on a file's size are one kind; a read-only folder is another."""
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)
    assert [is_full(OSError(number, "")) for number in numbers] == [True, True, True, False, False]
    assert not is_full(ValueError("x")) and not is_full(OSError("no number"))


def test_remedies() -> None:
    """Where there is no room: free it; where there is no way in: what the command suggests."""
    full, closed = OSError(28, "No space left on device"), OSError(13, "Permission denied")
    assert (
        str(refusal("a", full, "choose b")) == "a cannot be written: No space left on device. Remedy: free space there."
    )
    said = refusal("a", closed, "choose b", ConfigError)
    assert isinstance(said, ConfigError) and str(said).endswith("Permission denied. Remedy: choose b.")


def test_what_libraries_say(tmp_path: Path) -> None:
    """safetensors and tokenizers write in Rust and raise errors of their own; shutil lists those of many files."""
    from tokenizers import Tokenizer, models

    with disk_of(100), pytest.raises(SafetensorError) as of_weights:
        save_file({"w": torch.zeros(1000)}, tmp_path / "w")
    with disk_of(100), pytest.raises(Exception) as of_tokens:
        Tokenizer(models.WordLevel({f"word{i}": i for i in range(99)}, "word0")).save(str(tmp_path / "t"))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(bytes(1000))
    with disk_of(100), pytest.raises(shutil.Error) as of_copies:
        shutil.copytree(tmp_path / "a", tmp_path / "c")
    for found in (of_weights, of_tokens, of_copies):
        assert why(found.value) == ("File too large", errno.EFBIG)
        with pytest.raises(RunError, match="^x cannot be written: File too large. Remedy: free space there.$"):
            with written(Path("x"), ""):
                raise found.value


@pytest.mark.parametrize("error", [ValueError("of something else"), DataError("said already"), KeyboardInterrupt()])
def test_other_errors_pass(error: BaseException) -> None:
    """What is no refusal of a disk stays what it is."""
    with pytest.raises(type(error)), written(Path("x"), ""):
        raise error
