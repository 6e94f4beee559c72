"""The API reference holds every public name, and nothing that is gone."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import zotune


def _named(repository: Path) -> set[str]:
    text = (repository / "docs" / "api.md").read_text(encoding="utf-8")
    return set(re.findall(r"^\.\. auto(?:class|function|module):: (\S+)$", text, re.MULTILINE))


def test_every_public_name_is_there(repository: Path) -> None:
    """The names of `zotune` itself; METHODS is the table whose rows are there."""
    last = {name.rpartition(".")[2] for name in _named(repository)}
    assert set(zotune.__all__) - {"METHODS"} <= last
    assert {method.build.__name__ for method in zotune.METHODS.values()} <= last


def test_every_entry_exists_and_is_described(repository: Path) -> None:
    """A name that has moved would leave a hole in the page."""
    named = _named(repository)
    assert len(named) > 60
    for name in named:
        home, _, last = name.rpartition(".")
        found = getattr(import_module(home), last, None)
        found = import_module(name) if found is None else found
        assert found.__doc__ and found.__doc__.strip(), name
