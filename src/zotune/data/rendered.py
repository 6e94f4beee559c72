"""A row as text: what is read, what may follow, and which of it is right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

from zotune.data.files import encodable
from zotune.errors import DataError

Row = Mapping[str, Any]

# Where a masked model's prompt has its gap; the tokenizer's own mask token takes its place.
MASK = "<mask>"


@final
@dataclass(frozen=True, slots=True)
class Rendered:
    """One row as text.

    prompt: what is read. candidates: what may follow it, as they are (a space between is part of them).
    right: indices of the right candidates; the first is the one that is trained on. blank: the prompt without content,
    for calibration; None where there is no calibration. answers: texts that a generated answer is compared with.
    sizes: characters of each candidate, where scores are also compared per character.
    """

    prompt: str
    candidates: tuple[str, ...]
    right: tuple[int, ...] = (0,)
    blank: str | None = None
    answers: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()


Render = Callable[[Row], Rendered]


def field(row: Row, *names: str) -> Any:
    """The value of the first of these columns that the row has. Raises DataError when it has none, or a null."""
    for name in names:
        if row.get(name) is not None:
            return row[name]
    null = [name for name in names if name in row]
    if null:
        raise DataError(f"column {null[0]!r} is null. Remedy: drop such rows or give them a value.")
    raise DataError(
        f"no column {' or '.join(map(repr, names))}; columns found: {', '.join(map(str, row)) or 'none'}. "
        "Remedy: rename the column, or check that this is the right file."
    )


def text(row: Row, *names: str) -> str:
    """`field` as text. Raises DataError for anything else."""
    value = field(row, *names)
    if not isinstance(value, str):
        raise DataError(f"column {names[0]!r} holds {value!r}, not text. Remedy: correct the row.")
    return value


def texts(row: Row, *names: str) -> tuple[str, ...]:
    """`field` as a list of texts; csv files hold it as JSON. Raises DataError for anything else, and for no texts."""
    value = from_json(field(row, *names), names[0])
    if not isinstance(value, list | tuple) or not value or not all(isinstance(item, str) for item in value):
        raise DataError(f"column {names[0]!r} holds {value!r}, not a list of texts. Remedy: correct the row.")
    return tuple(value)


def from_json(value: Any, name: str) -> Any:
    """Lists and objects inside a csv cell are JSON; other values stay as they are."""
    import json

    if not isinstance(value, str):
        return value
    try:
        found = json.loads(value)
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits, thousands of brackets
        reason = getattr(error, "msg", None) or error
        raise DataError(
            f"column {name!r} holds {value[:60]!r}, which is no JSON ({reason}). "
            "Remedy: write the list or object as JSON."
        ) from None
    if "\\u" in value and not encodable(found):
        raise DataError(f"column {name!r} holds half a surrogate pair, which is no text. Remedy: correct the row.")
    return found


@final
@dataclass(frozen=True, slots=True)
class Classes:
    """Which class a row belongs to, from an index, a truth value or a name.

    columns: where the label may stand; the first that the row has is read. names: all names of each class, in lower
    case, in the order of the indices. A label of -1 or `-` means that nobody knows: see `known`.
    """

    columns: tuple[str, ...]
    names: tuple[tuple[str, ...], ...]

    def known(self, row: Row) -> bool:
        """Whether the row has a label at all."""
        return str(field(row, *self.columns)).strip() not in ("-1", "-")

    def index(self, row: Row) -> int:
        """The class of the row. Raises DataError for no such column or class."""
        value = field(row, *self.columns)
        said = str(int(value) if isinstance(value, bool) else value).strip().lower()
        for index, names in enumerate(self.names):
            if said == str(index) or said in names:
                return index
        options = ", ".join("/".join((str(index), *names)) for index, names in enumerate(self.names))
        column = next(name for name in self.columns if row.get(name) is not None)
        raise DataError(f"column {column!r} is {value!r}, none of {options}. Remedy: correct the label.")
