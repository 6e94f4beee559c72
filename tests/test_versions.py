"""Libraries that are too old or too new: named with what is here, what is needed, and the command for pip."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import pytest

from zotune.errors import UserError
from zotune.session import Session
from zotune.versions import Old, check_versions, explained, outdated

FOUND = {"transformers": "4.51.3", "datasets": "2.14.0"}


@pytest.fixture
def old(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment with transformers 4 and datasets 2, which zotune does not work with."""
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: FOUND.get(name) or real(name))
    needs = ["transformers>=5", "torch>=2.6", "pyyaml", "datasets>=4; extra == 'data'", "optuna>=4 ; extra == 'tune'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: needs)


def test_this_environment_is_new_enough() -> None:
    """What the project asks for is what its tests run with."""
    assert outdated() == [] and check_versions() is None


def test_old_libraries_are_named(old: None) -> None:
    """Those of every run, and those of extras where they are installed."""
    assert outdated() == [Old("transformers", "4.51.3", "5"), Old("datasets", "2.14.0", "4")]
    assert outdated(extras=False) == [Old("transformers", "4.51.3", "5")]
    said = "transformers 4.51.3 is installed, and zotune needs 5 or newer. Remedy: pip install -U 'transformers>=5'."
    with pytest.raises(UserError) as found:
        check_versions()
    assert str(found.value) == said


def test_a_run_says_it_before_it_reads_anything(old: None, config: Any) -> None:
    """Not deep within a library's own error."""
    with pytest.raises(UserError, match="transformers 4.51.3 is installed.*pip install -U 'transformers>=5'"):
        Session(config(model="no such folder"))


def test_what_is_missing_from_an_old_library(old: None) -> None:
    """Its error is said, and what to install; other errors are none of a version's."""
    said = explained(AttributeError("module 'datasets' has no attribute 'x'"))
    assert said is not None and said.startswith(
        "AttributeError: module 'datasets' has no attribute 'x'. transformers 4"
    )
    assert explained(ValueError("transformers")) is None


def test_what_is_missing_from_a_new_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that a later version took away: what is here, and which one to go back to."""
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["transformers>=5", "huggingface_hub>=1.3"])
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "6.1.0")
    said = explained(ImportError("cannot import name 'get_scheduler' from 'transformers'", name="transformers"))
    assert said == (
        "transformers 6.1.0 does not have what zotune asks of it (cannot import name 'get_scheduler' from "
        "'transformers'). Remedy: pip install -U zotune, or an older one: pip install 'transformers>=5,<6'."
    )
    hub = explained(ImportError("cannot import name 'x'", name="huggingface_hub.utils"))
    assert hub is not None and "pip install 'huggingface-hub>=1.3,<2'" in hub
    assert explained(ImportError("no x", name="x")) is None and explained(AttributeError("x")) is None


def test_a_checkout_that_was_never_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no metadata: nothing is known, and nothing is refused."""

    def missing(name: str) -> Any:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", missing)
    check_versions()


def test_builds_and_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    """2.6.0+cpu is no older than 2.6; a release candidate counts as its release."""
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["torch>=2.6"])
    for version, fine in (("2.6.0+cpu", True), ("2.10.1", True), ("2.5.1+cu124", False), ("2.6.0rc1", True)):
        monkeypatch.setattr(importlib.metadata, "version", lambda name, version=version: version)
        assert (outdated() == []) == fine, version
