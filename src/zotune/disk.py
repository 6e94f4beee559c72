"""What is said where a disk refuses: why, and whether to free space there or to write elsewhere."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zotune.errors import RunError, UserError

# How libraries written in Rust (safetensors, tokenizers) end what the system told them.
_RUST = re.compile(r"([^:]+) \(os error (\d+)\)")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_full(error: Exception) -> bool:
    """Whether there was no room for what was written, on the disk or within a limit on it."""
    found = why(error)
    return found is not None and found[1] in _FULL


def why(error: Exception) -> tuple[str, int | None] | None:
    """The system's own words and number, where a file could not be written; None for an error of something else."""
    if isinstance(error, shutil.Error):  # of several files: the first
        told = str(error.args[0][0][2]) if error.args and error.args[0] else "it could not be copied"
        numbered = re.match(r"\[Errno (\d+)\] ([^:]+)", told)
        return (numbered[2], int(numbered[1])) if numbered else (told, None)
    if isinstance(error, OSError) and error.errno is not None:
        return error.strerror or str(error), error.errno
    told_in_rust = _RUST.search(str(error))
    if told_in_rust:
        return told_in_rust[1].strip(), int(told_in_rust[2])
    return (str(error), None) if isinstance(error, OSError) else None


def refusal(what: str, error: Exception, elsewhere: str, kind: type[UserError] = RunError) -> UserError:
    """What to raise: `what` cannot be written, and why. `elsewhere`: what helps when there is room, but no way in."""
    reason = (why(error) or (str(error), None))[0]
    remedy = "free space there" if is_full(error) else elsewhere
    return kind(f"{what} cannot be written: {reason}. Remedy: {remedy}.")


@contextmanager
def written(to: Path, elsewhere: str) -> Iterator[None]:
    """Raises RunError for a disk that refuses what is written within, whichever library finds that; all else passes."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if why(error) is None:
            raise
        raise refusal(str(to), error, elsewhere) from error
