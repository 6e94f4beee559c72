"""The errors of users: their exit codes, and which handlers they pass."""

from __future__ import annotations

from pathlib import Path

import pytest

from zotune import errors


def test_exit_codes_are_documented(repository: Path) -> None:
    """Every exit code of the errors stands in the table of docs/index.md."""
    table = (repository / "docs" / "index.md").read_text(encoding="utf-8")
    codes = {
        kind.exit_code
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.UserError)
    }
    assert [code for code in codes if f"| {code} |" not in table] == []


def test_each_kind_of_error_has_a_code_of_its_own() -> None:
    """1 is Python's and above 125 are signals'; only what is no more than a UserError shares its code, 2."""
    codes = {
        name: kind.exit_code
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.UserError)
    }
    others = [code for name, code in codes.items() if name not in ("UserError", "ConfigError")]
    assert codes["UserError"] == codes["ConfigError"] == 2
    assert len(set(others)) == len(others) and not {0, 1, 2} & set(others) and max(others) < 126


def test_a_signal_is_not_taken_for_an_error() -> None:
    """What catches errors lets SIGTERM pass; a journal's errors are those of its run."""
    with pytest.raises(errors.Terminated):
        try:
            raise errors.Terminated
        except Exception as error:
            raise AssertionError from error
    with pytest.raises(errors.RunError, match="byte 7"):
        raise errors.JournalError("corrupt at byte 7")
