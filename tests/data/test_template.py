"""Template: exact text, strict columns, a sandbox."""

from __future__ import annotations

import pytest

from zotune.data.template import Template
from zotune.errors import DataError


def test_text_is_exact() -> None:
    """Nothing is escaped, stripped or added."""
    assert Template("{{ text }}\nWhy?\n").render({"text": " <b> & 'x' "}) == " <b> & 'x' \nWhy?\n"


def test_columns() -> None:
    """The names a template uses, those set inside it left out."""
    assert Template("{% set y = a %}{{ y }}{{ b | upper }}").columns == {"a", "b"}


def test_extra_wins_over_a_column() -> None:
    """`mask` is the tokenizer's even where a row has a column of that name."""
    assert Template("{{ mask }}{{ t }}").render({"t": "x", "mask": "no"}, {"mask": "[M]"}) == "[M]x"


def test_missing_column_is_named() -> None:
    """The message holds the missing name and the columns there are."""
    with pytest.raises(DataError, match=r"column sentence is missing\. Columns found: text, label"):
        Template("{{ sentence }} {{ text }}").render({"text": "x", "label": 1})


def test_what_is_wrong_with_a_row_is_said_with_its_number() -> None:
    """The prompts of several rows; the first one that cannot be rendered is named."""
    template = Template("{{ text }}{{ mark }}")
    assert template.rendered([{"text": "a"}, {"text": "b"}], {"mark": "!"}) == ["a!", "b!"]
    with pytest.raises(DataError, match=r"^Row 2: Template .*: column text is missing"):
        template.rendered([{"text": "a"}, {"txt": "b"}], {"mark": "!"})


def test_missing_column_in_a_branch_is_no_error() -> None:
    """A template may ask whether a column exists."""
    template = Template("{% if hint is defined %}{{ hint }} {% endif %}{{ text }}")
    assert template.render({"text": "x"}) == "x"
    assert template.render({"text": "x", "hint": "h"}) == "h x"


def test_null_is_refused() -> None:
    """A null never becomes the word None."""
    with pytest.raises(DataError, match="column text is null"):
        Template("{{ text }}").render({"text": None})


@pytest.mark.parametrize("source", ["{{ text", "{% if %}", "{{ text | nofilter }}"])
def test_syntax_errors(source: str) -> None:
    """A bad template fails when it is made."""
    with pytest.raises(DataError, match="syntax error in line 1"):
        Template(source)


def test_wrong_operation_is_a_data_error() -> None:
    """A TypeError inside the template does not reach the user as a traceback."""
    with pytest.raises(DataError, match="failed"):
        Template("{{ text + 1 }}").render({"text": "x"})
