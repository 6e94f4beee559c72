"""Which versions of other libraries are here, and which are needed: one sentence in place of their own errors.

What is needed stands in the package's metadata, as an installer reads it: `transformers>=5`. A checkout that was never
installed has none, and is not checked.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator
from typing import NamedTuple, final

from zotune.errors import UserError

_NEED = re.compile(r"^(?P<name>[\w.-]+)>=(?P<least>[\d.]+)(?P<extra>\s*;.*extra.*)?$")


@final
class Old(NamedTuple):
    """An installed library that is older than zotune needs."""

    name: str
    found: str
    least: str

    def said(self) -> str:
        """The sentence with the remedy."""
        return (
            f"{self.name} {self.found} is installed, and zotune needs {self.least} or newer. "
            f"Remedy: pip install -U '{self.name}>={self.least}'."
        )


def outdated(extras: bool = True) -> list[Old]:
    """Installed libraries that are too old; without `extras` only those that every run needs."""
    return [
        Old(name, found, least)
        for name, least, extra in _needed()
        if (extras or not extra) and (found := _installed(name)) is not None and _numbers(found) < _numbers(least)
    ]


def check_versions() -> None:
    """Raises UserError for the first library, of those that every run needs, that is too old."""
    for old in outdated(extras=False):
        raise UserError(old.said())


def explained(error: BaseException) -> str | None:
    """What is said of an error that another version of a library is behind: one that is too old, or one that no longer
    has what is asked of it. None for any other.
    """
    if not isinstance(error, ImportError | AttributeError | TypeError):
        return None
    for old in outdated():
        return f"{type(error).__name__}: {str(error).rstrip('.')}. {old.said()}"
    name = (getattr(error, "name", None) or "").partition(".")[0].replace("_", "-")
    needed = {known.replace("_", "-"): least for known, least, _ in _needed()}
    if not isinstance(error, ImportError) or name not in needed or (found := _installed(name)) is None:
        return None
    newer = int(needed[name].partition(".")[0]) + 1
    return (
        f"{name} {found} does not have what zotune asks of it ({str(error).rstrip('.')}). Remedy: pip install -U "
        f"zotune, or an older one: pip install '{name}>={needed[name]},<{newer}'."
    )


def _needed() -> Iterator[tuple[str, str, bool]]:
    """Name, least version and whether it is an extra's, of each requirement with a least version."""
    try:
        requirements = importlib.metadata.requires("zotune") or []
    except importlib.metadata.PackageNotFoundError:
        return
    for requirement in requirements:
        found = _NEED.match(requirement.strip())
        if found is not None and found["name"] != "pip":  # a program that `zotune demo` starts, which says so itself
            yield found["name"], found["least"], found["extra"] is not None


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    """2.6.0+cpu as (2, 6, 0): what comes before a letter or a plus."""
    found = re.match(r"[\d.]+", version)
    return tuple(int(part) for part in found[0].strip(".").split(".")) if found else ()
