"""A prompt template: sandboxed Jinja over the columns of a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

from jinja2 import StrictUndefined, meta
from jinja2.exceptions import SecurityError, TemplateSyntaxError, UndefinedError
from jinja2.sandbox import ImmutableSandboxedEnvironment

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
        environment = ImmutableSandboxedEnvironment(
            undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False, finalize=_refuse_null
        )
        try:
            self.columns = frozenset(meta.find_undeclared_variables(environment.parse(source)))
            self._compiled = environment.from_string(source)
        except TemplateSyntaxError as error:
            raise DataError(
                f"The template {source!r} has a syntax error in line {error.lineno}: {error.message}. "
                "Remedy: write columns as {{ name }}."
            ) from error

    def render(self, row: Mapping[str, Any], extra: Mapping[str, Any] | None = None) -> str:
        """The prompt of one row. `extra` adds names (such as `mask`) and wins over columns."""
        values = {**row, **(extra or {})}
        try:
            return self._compiled.render(values)
        except UndefinedError as error:
            missing = sorted(self.columns - values.keys())
            named = f"column {', '.join(missing)} is missing" if missing else str(error)
            raise DataError(
                f"Template {self.source!r}: {named}. Columns found: {', '.join(map(str, row)) or 'none'}. "
                "Remedy: correct the template or the data."
            ) from error
        except _NullColumn as error:
            null = sorted(name for name in self.columns if name in values and values[name] is None)
            raise DataError(
                f"Template {self.source!r}: column {', '.join(null) or '?'} is null. "
                "Remedy: drop such rows or give them a value."
            ) from error
        except SecurityError as error:
            raise DataError(
                f"Template {self.source!r} is not allowed: {error}. Remedy: use columns and filters only."
            ) from error
        except (TypeError, ValueError, ArithmeticError, LookupError, MemoryError) as error:
            raise DataError(
                f"Template {self.source!r} failed: {error}. Remedy: correct the template or the data."
            ) from error


class _NullColumn(Exception):
    """A null reached the text; it would read `None`."""


def _refuse_null(value: Any) -> Any:
    if value is None:
        raise _NullColumn
    return value
