"""Small files that may come from anywhere: read without waiting at a pipe, and as nothing but what they should be.

Needs only the standard library.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any, NoReturn

MOST = 2**30  # bytes of a file of a run that is read whole: the metrics of some ten million steps


def read_plain(path: Path, most: int = MOST, follow: bool = False) -> bytes:
    """The bytes of a regular file, never of a pipe, a socket, a device or a folder; of a link only with `follow`.

    Raises OSError, with a reason as its `strerror`, for anything else and for more than `most` bytes.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        descriptor = os.open(path, flags if follow else flags | getattr(os, "O_NOFOLLOW", 0))
    except ValueError:  # a NUL in the name
        raise OSError(errno.EINVAL, "its name holds a NUL", str(path)) from None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise OSError(error.errno, "it is a link or a socket, not a plain file", str(path)) from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a plain file", str(path))
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"it has more than {most} bytes", str(path))
    return data


def parse_json(data: bytes, constants: bool = False) -> Any:
    """The value of strict JSON in UTF-8: no byte order mark, and NaN and infinities only with `constants`.

    Raises ValueError, also for brackets and numbers of thousands of characters.
    """
    try:
        return json.loads(data.decode("utf-8"), parse_constant=None if constants else _refuse)
    except RecursionError:
        raise ValueError("it nests too deep") from None


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def is_count(value: Any, most: int = 2**63 - 1) -> bool:
    """Whether a value of JSON is a whole number from 0 to `most`; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most
