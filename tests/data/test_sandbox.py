"""What a prompt's template may do; all else ends in the documented error, in bounded time and memory."""

from __future__ import annotations

import time
from typing import Any

import pytest
from tests.hostile import HOSTILE_ROW, TEMPLATE_ROW, TEMPLATES, bounded_memory

from zotune.data.sandbox import MAX_ITEMS, MAX_SIZE, MAX_SOURCE
from zotune.data.template import Template
from zotune.errors import DataError


@pytest.mark.parametrize("name", TEMPLATES)
def test_hostile_template(name: str) -> None:
    """Products, powers, doublings, loops, depth, random words, Python's insides: DataError, soon."""
    begun = time.process_time()
    with bounded_memory(), pytest.raises(DataError, match="Remedy"):
        Template(TEMPLATES[name]).render(HOSTILE_ROW)
    assert time.process_time() - begun < 5


def test_prompts_that_people_write() -> None:
    """Conditions, loops over columns, set, methods and filters of text work as ever."""
    row = {**TEMPLATE_ROW, "messages": [{"role": "user", "content": " hi "}], "premise": "A dog.", "x": 2.345}
    for source, text in (
        ("{{ text.strip() | upper }}", "IT WAS GOOD"),
        ("{% for m in messages %}{{ m.role }}: {{ m['content'].strip() }}\n{% endfor %}", "user: hi\n"),
        ("{% for i in items %}{{ loop.index }}. {{ i }}{{ ', ' if not loop.last }}{% endfor %}", "1. a, 2. b"),
        ("{% set q = premise.rstrip('.') %}{{ q ~ '?' }}", "A dog?"),
        ("{{ items | join(', ') }} {{ items | map('upper') | join }}", "a, b AB"),
        ("{{ text | replace('was', 'is') }}{{ text.replace('it', 'It', 1) }}", "it is goodIt was good"),
        ("{{ text.split(' ')[0] }} {{ n + 1 }} {{ x | round(1) }} {{ items | length }}", "it 4 2.3 2"),
        ("{% if n > 2 and 'good' in text %}yes{% else %}no{% endif %}", "yes"),
        ("{{ items | tojson }}", '["a", "b"]'),
        ("{% raw %}{{ x }}{% endraw %}", "{{ x }}"),
    ):
        assert Template(source).render(row) == text


@pytest.mark.parametrize(
    "source",
    [
        "{{ text.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ text.format.__globals__ }}",
        "{{ items.append(1) }}",
        "{{ range(10000000) | list }}",
    ],
)
def test_sandbox(source: str) -> None:
    """Python's insides, changing the row and giant loops are refused."""
    with pytest.raises(DataError):
        Template(source).render({"text": "x", "items": []})


@pytest.mark.parametrize(
    ("source", "row", "said"),
    [
        ("{{ text + text }}", {"text": "x" * (MAX_SIZE // 2)}, "a value of 1048578 characters"),
        ("{{ [text, text] | length }}", {"text": "x" * (MAX_SIZE // 2 - 1)}, "a value of 1048577 characters or items"),
        ("{% for a in many %}{{ a }}{% endfor %}", {"many": list(range(MAX_ITEMS))}, "more than 1024 items"),
    ],
)
def test_the_limits_are_where_they_are_said_to_be(source: str, row: dict[str, Any], said: str) -> None:
    """As much as the limit is fine, for a text, for a list with all that it holds, and for a loop; one more is not."""
    assert Template(source).render(row)
    more = {name: value + value[:1] for name, value in row.items()}
    with pytest.raises(DataError, match=f"is not allowed: .*{said}"):
        Template(source).render(more)


def test_a_template_that_is_too_long_or_names_a_check_is_none() -> None:
    """Its length is bounded too, and the checks that are put into it have names that none can write."""
    assert Template("x" * MAX_SOURCE).render({}) == "x" * MAX_SOURCE
    for source, said in (
        ("x" * (MAX_SOURCE + 1), "it has 65537 characters, over 65536"),
        ("{{ text | as read }}", "expected token 'end of print statement', got 'read'"),
        ("{{ n * 2 }}", "Mul is not for prompts"),
        ("{% for a in items %}{% for b in items %}{% for c in items %}{% endfor %}{% endfor %}{% endfor %}", "2 loops"),
    ):
        with pytest.raises(DataError, match=f"syntax error in line 1: .*{said}"):
            Template(source)
