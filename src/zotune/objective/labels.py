"""Label values of a column, and the words that stand for them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, final

from zotune.errors import ConfigError, DataError
from zotune.objective.tokens import Ids, TextCoder

Value = str | int | float


@final
class Labels:
    """Maps a row to the index of its label word.

    values: label values in the order of `words`; None takes the sorted distinct values of the first rows seen
    (integers as integers). A value that reads as an integer is that integer: "1" in a csv file equals 1. A text among
    `values` that reads as another number or a truth value stands for that too: "1.0" for 1, "true" for true.
    """

    def __init__(self, column: str, words: Sequence[str], values: Sequence[Value] | None) -> None:
        if len(words) < 2:
            raise DataError(f"{len(words)} label words given: {list(words)}. Remedy: give at least two.")
        if not all(word.strip() for word in words):
            raise DataError(f"one of the label words {list(words)} is empty. Remedy: give a word for each label.")
        self.column = column
        self.words = tuple(words)
        self._values = None if values is None else self._checked([_canonical(value) for value in values])

    @property
    def mapping(self) -> dict[Value, str]:
        """Label value to label word. Raises ConfigError before the values are known."""
        if self._values is None:
            raise ConfigError("The label values are not known yet. Remedy: pass labels, or encode the rows first.")
        return dict(zip(self._values, self.words, strict=True))

    def indices(self, rows: Sequence[Mapping[str, Any]]) -> list[int]:
        """Raises DataError: no such column, a value that is no label, words and values that do not pair."""
        values = [self._value(row, number) for number, row in enumerate(rows, start=1)]
        if self._values is None:
            self._values = self._checked(_in_order(set(values)))
        places = _places(self._values)
        for number, value in enumerate(values, start=1):
            if value not in places:
                found = ", ".join(map(repr, _in_order(set(values))))
                raise DataError(
                    f"Row {number}: label {value!r} is not among {', '.join(map(repr, self._values))}; "
                    f"column {self.column!r} holds {found}. "
                    "Remedy: correct the labels, or give a word for each."
                )
        return [places[value] for value in values]

    def _value(self, row: Mapping[str, Any], number: int) -> Value:
        if self.column not in row:
            raise DataError(
                f"Row {number} has no column {self.column!r}; "
                f"columns found: {', '.join(map(str, row)) or 'none'}. "
                "Remedy: --label-column with one of them."
            )
        value = row[self.column]
        if not isinstance(value, str | int | float) or (isinstance(value, float) and not math.isfinite(value)):
            raise DataError(
                f"Row {number}: label {value!r} in column {self.column!r} is neither text nor a finite number. "
                "Remedy: correct the row."
            )
        return _canonical(value)

    def _checked(self, values: Sequence[Value]) -> tuple[Value, ...]:
        if len(set(values)) != len(values):
            raise DataError(f"The labels {list(values)} repeat a value. Remedy: give each value once.")
        if len(values) != len(self.words):
            raise DataError(
                f"{len(self.words)} label words ({', '.join(map(repr, self.words))}) for "
                f"{len(values)} label values ({', '.join(map(repr, values))}). "
                "Remedy: give one word per value, and the labels in that order."
            )
        return tuple(values)


def check_words(coder: TextCoder, words: Sequence[str], tokens: Sequence[Ids]) -> None:
    """Raises DataError for a word without tokens, outside the vocabulary, or with another word's tokens."""
    unknown = getattr(coder.tokenizer, "unk_token_id", None)
    seen: dict[Ids, str] = {}
    for word, ids in zip(words, tokens, strict=True):
        if not ids:
            raise DataError(f"Label word {word!r} gives no tokens. Remedy: choose another word.")
        if unknown is not None and unknown in ids:
            raise DataError(f"Label word {word!r} is not in the vocabulary. Remedy: choose another word.")
        if ids in seen:
            raise DataError(
                f"Label words {seen[ids]!r} and {word!r} have the same tokens {list(ids)}. "
                "Remedy: choose words that the tokenizer tells apart."
            )
        seen[ids] = word


def _canonical(value: Value) -> Value:
    """An integer for every spelling of one, so that csv, JSON and the command line agree."""
    if isinstance(value, str):
        digits = value.strip()
        return int(digits) if digits.removeprefix("-").isdecimal() and str(int(digits)) == digits else value
    return value


def _places(values: Sequence[Value]) -> dict[Value, int]:
    """The index of each value, and of what a text among them reads as where no value is that itself."""
    from zotune.yaml12 import parse_scalar

    places = {value: index for index, value in enumerate(values)}
    for index, value in enumerate(values):
        read = parse_scalar(value) if isinstance(value, str) else None
        if isinstance(read, int | float):
            places.setdefault(read, index)
    return places


def _in_order(values: set[Value]) -> list[Value]:
    numbers = sorted(value for value in values if not isinstance(value, str))
    return [*numbers, *sorted(value for value in values if isinstance(value, str))]
