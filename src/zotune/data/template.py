"""A prompt template: sandboxed Jinja over the columns of a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

from jinja2 import meta
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError, UndefinedError

from zotune.data.sandbox import MAX_SIZE, PromptEnvironment, size_of
from zotune.errors import DataError


@final
class Template:
    """`Template("{{ text }} It was")`. Columns are names; nothing is escaped; a trailing newline is kept.

    Raises DataError for a syntax error, for anything the sandbox forbids, for a column that a row lacks
    and for a column that is null.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        # A sandbox of its own per template: no shared state, no access to attributes of Python objects.
        environment = PromptEnvironment(_refuse_null)
        self._budget = environment.budget
        try:
            tree = environment.tree(source)
            self.columns = frozenset(meta.find_undeclared_variables(tree))
            self._compiled = environment.from_string(tree)
        except TemplateSyntaxError as error:
            raise DataError(
                f"The template {_short(source)} has a syntax error in line {error.lineno}: {_said(error.message)}. "
                "Remedy: write columns as {{ name }}."
            ) from error
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # of Python, for what Jinja wrote
            raise DataError(
                f"The template {_short(source)} cannot be used: {_said(error)}. Remedy: make it simpler."
            ) from error

    def render(self, row: Mapping[str, Any], extra: Mapping[str, Any] | None = None) -> str:
        """The prompt of one row. `extra` adds names (such as `mask`) and wins over columns."""
        values = {**row, **(extra or {})}
        try:
            return self._text(values)
        except UndefinedError as error:
            missing = sorted(self.columns - values.keys())
            named = f"column {', '.join(missing)} is missing" if missing else str(error)
            raise DataError(
                f"Template {_short(self.source)}: {named}. Columns found: {', '.join(map(str, row)) or 'none'}. "
                "Remedy: correct the template or the data."
            ) from error
        except _NullColumn as error:
            null = sorted(name for name in self.columns if name in values and values[name] is None)
            raise DataError(
                f"Template {_short(self.source)}: column {', '.join(null) or '?'} is null. "
                "Remedy: drop such rows or give them a value."
            ) from error
        except SecurityError as error:
            raise DataError(
                f"Template {_short(self.source)} is not allowed: {_said(error)}. Remedy: use columns and filters only."
            ) from error
        except _FAILURES as error:
            raise DataError(
                f"Template {_short(self.source)} failed: {_said(error)}. Remedy: correct the template or the data."
            ) from error

    def rendered(self, rows: Sequence[Mapping[str, Any]], extra: Mapping[str, Any] | None = None) -> list[str]:
        """The prompts of rows; what is wrong with one is said with its number."""
        found = []
        for number, row in enumerate(rows, start=1):
            try:
                found.append(self.render(row, extra))
            except DataError as error:
                raise DataError(f"Row {number}: {error}") from error
        return found

    def _text(self, values: Mapping[str, Any]) -> str:
        pieces, size = [], 0
        self._budget.allow(size_of([values[name] for name in self.columns if name in values]))
        for piece in self._compiled.generate(values):
            size += len(piece)
            if size > MAX_SIZE:
                raise SecurityError(f"its text is longer than {MAX_SIZE} characters")
            pieces.append(piece)
        return "".join(pieces)


# What an expression raises when it does not fit the values of a row.
_FAILURES = (
    TemplateError, TypeError, ValueError, ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError,
)  # fmt: skip


def _said(error: Any) -> str:
    return str(error).rstrip(".")


def _short(source: str) -> str:
    return repr(source) if len(source) <= 500 else f"{source[:500]!r}..."


class _NullColumn(Exception):
    """A null reached the text; it would read `None`."""


def _refuse_null(value: Any) -> Any:
    if value is None:
        raise _NullColumn
    return value
