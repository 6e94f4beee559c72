"""Fields of a row: found under any of their names, checked, and read from JSON where a file holds text."""

from __future__ import annotations

from typing import Any

import pytest

from zotune.data.rendered import Classes, field, text, texts
from zotune.errors import DataError

COLOURS = Classes(("colour", "label"), (("red",), ("green", "lime"), ("blue",)))


def test_fields() -> None:
    """The first name that has a value; lists from JSON text."""
    assert field({"b": 1, "a": None}, "a", "b") == 1 and text({"a": ""}, "a") == ""
    assert texts({"a": ["x", "y"]}, "a") == texts({"a": '["x", "y"]'}, "a") == ("x", "y")


@pytest.mark.parametrize(
    ("label", "index"), [(0, 0), ("1", 1), (True, 1), ("LIME", 1), (" blue ", 2), ("green", 1), (2, 2)]
)
def test_classes(label: Any, index: int) -> None:
    """An index, a truth value or a name, in any case."""
    assert COLOURS.index({"label": label}) == index and COLOURS.known({"label": label})


def test_the_first_column_wins() -> None:
    """Where a row has several of the columns, the first named is read."""
    assert COLOURS.index({"label": 0, "colour": "blue"}) == 2


@pytest.mark.parametrize("label", [-1, "-1", "-"])
def test_unknown_labels(label: Any) -> None:
    """Hidden and disputed labels are told apart from wrong ones."""
    assert not COLOURS.known({"label": label})


@pytest.mark.parametrize(
    ("read", "says"),
    [
        (lambda: field({"c": 1}, "a", "b"), "no column 'a' or 'b'; columns found: c"),
        (lambda: field({"a": None}, "a", "b"), "column 'a' is null"),
        (lambda: text({"a": 1}, "a"), "column 'a' holds 1, not text"),
        (lambda: texts({"a": []}, "a"), r"column 'a' holds \[\], not a list of texts"),
        (lambda: texts({"a": "[1]"}, "a"), r"column 'a' holds \[1\], not a list of texts"),
        (lambda: texts({"a": '["\\ud800"]'}, "a"), "column 'a' holds half a surrogate pair, which is no text"),
        (lambda: COLOURS.index({"label": 3}), "column 'label' is 3, none of 0/red, 1/green/lime, 2/blue"),
    ],
)
def test_errors(read: Any, says: str) -> None:
    """Each names the column and a remedy."""
    with pytest.raises(DataError, match=says) as caught:
        read()
    assert "Remedy: " in str(caught.value)
