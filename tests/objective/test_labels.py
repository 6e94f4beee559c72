"""Labels: values and words pair up, or the message says what was found."""

from __future__ import annotations

import math
from typing import Any

import pytest

from zotune.errors import ConfigError, DataError
from zotune.objective.labels import Labels


def rows(*values: Any) -> list[dict[str, Any]]:
    """Rows with these labels."""
    return [{"label": value} for value in values]


def test_integers_sort_as_integers() -> None:
    """Ten comes after two, as text from a csv file too, and the two spellings are one label."""
    words = ["zero", "two", "ten"]
    labels = Labels("label", words, None)
    assert labels.indices(rows("10", "2", 0, 2)) == [2, 1, 0, 1]
    assert labels.mapping == {0: "zero", 2: "two", 10: "ten"}


def test_text_labels() -> None:
    """Text sorts as text; digits that are not how an integer is written stay text."""
    labels = Labels("label", ["a", "b", "c"], None)
    assert labels.indices(rows("not_entailment", "01", "entailment")) == [2, 0, 1]


def test_given_order_wins() -> None:
    """Words belong to the labels in the order given, and only later rows may lack one."""
    labels = Labels("label", ["no", "yes"], [1, 0])
    assert labels.indices(rows(1, "0", True, False)) == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (["false", "true"], ["false", "true"]),
        (["false", "true"], [False, True]),
        (["01", "02"], ["01", "02"]),
        (["0.0", "1.0"], [0, 1]),
        (["0.0", "1.0"], ["0", "1"]),
        (["0.0", "1.0"], ["0.0", "1.0"]),
        (["0.5", "1e3"], [0.5, 1000.0]),
        (["null", "nan"], ["null", "nan"]),
        ([0, 1], [0.0, 1.0]),
        (["01", "1"], ["01", 1]),
        (["true", 1], ["true", True]),
        (["1.0", "1"], ["1.0", "1"]),
    ],
)
def test_what_a_given_text_stands_for(given: list[Any], found: list[Any]) -> None:
    """Itself as a row's text, else the number or the truth value that it reads as, unless another label is that."""
    assert Labels("label", ["a", "b"], given).indices(rows(*found)) == [0, 1]


def test_the_first_rows_decide() -> None:
    """Evaluation rows with fewer values keep the mapping of the training rows."""
    labels = Labels("label", ["a", "b"], None)
    with pytest.raises(ConfigError, match="not known yet"):
        _ = labels.mapping
    labels.indices(rows("x", "y"))
    assert labels.indices(rows("y")) == [1]


@pytest.mark.parametrize(
    ("words", "values", "found", "says"),
    [
        (["a", "b"], None, [0, 1, 2], "2 label words .* for 3 label values"),
        (["a", "b", "c"], None, [0, 1], "3 label words .* for 2 label values"),
        (["a", "b"], [0, 1, 2], [], "2 label words .* for 3 label values"),
        (["a", "b"], [0, "0"], [], "repeat a value"),
        (["a", "b"], [0, 1], [0, 5], "Row 2: label 5 is not among 0, 1; column 'label' holds 0, 5"),
        (["a", "b"], None, [0, None], "Row 2: label None"),
        (["a", "b"], None, [1, math.nan], "Row 2: label nan in column 'label' is neither text nor a finite number"),
        (["a", "b"], [0, 1], [0, -math.inf], "Row 2: label -inf in column 'label' is neither text nor a finite"),
        (["a"], None, [0], "at least two"),
        (["a", ""], None, [0, 1], r"one of the label words \['a', ''\] is empty. Remedy"),
        (["a", "  "], None, [0, 1], "is empty"),
    ],
)
def test_errors(words: list[str], values: list[Any] | None, found: list[Any], says: str) -> None:
    """The message holds the row, the value and what there is."""
    with pytest.raises(DataError, match=says):
        Labels("label", words, values).indices(rows(*found))


def test_missing_column() -> None:
    """The message holds the row and the columns there are."""
    with pytest.raises(DataError, match="Row 2 has no column 'label'; columns found: text"):
        Labels("label", ["a", "b"], None).indices([{"label": 1}, {"text": "x"}])
