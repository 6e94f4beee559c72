"""Inputs made to crash, to hang or to fill the memory; each must end in the documented error. No pytest here."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager

_LONG = "{% set a = some | map('string') | join('1') %}"  # some thousand letters
TEMPLATES = {
    "product": "{{ text * 999999999 }}",
    "power": "{{ 9 ** 9 ** 9 ** 9 }}",
    "format": "{{ '%999999999d' % 1 }}",
    "format method": "{{ '{:999999999}'.format(1) }}",
    "center": "{{ text.center(999999999) }}",
    "zfill": "{{ text.zfill(999999999) }}",
    "doubling": "{% set a = text %}" + "{% set a = a ~ a %}" * 40 + "{{ a }}",
    "sums": "{% set a = text %}" + "{% set a = a + a %}" * 40 + "{{ a }}",
    "lists": "{% set a = [1] %}" + "{% set a = a + a %}" * 40 + "{{ a }}",
    "block": "{% set a %}{{ text }}{{ text }}{% endset %}{{ a }}",
    "replacing": "{{ text" + " | replace('o', 'oooooooooo')" * 12 + " }}",
    "replace method": "{{ text" + ".replace('o', 'oooooooooo')" * 12 + " }}",
    "joining": "{% set a = text | list | join(text * 1) %}{{ a }}",
    "joins": "{{ text" + " | list | join('aaaaaaaaaaaaaaaaaaaa')" * 12 + " }}",
    "map": "{{ [text] | map('replace', 'o', text) | map('replace', 'o', text) | map('center', 999999999) | list }}",
    "escapes": "{{ text" + " | tojson" * 40 + " }}",
    "shared lists": "{% set a = [text] %}" + "{% set a = [a, a] %}" * 40 + "{{ a }}",
    "shared in one": "{% set a = many + many + many %}{% set b = [" + "a," * 300 + "] %}{{ [" + "b," * 5000 + "] }}",
    "joined lists": "{% set a = [text] %}" + "{% set a = [a, a] %}" * 15 + "{{ a" + " ~ a" * 5000 + " }}",
    "summed lists": "{% set a = many %}" + "{% set a = a + a %}" * 8 + "{{ [" + "a," * 5000 + "] | sum(start=[]) }}",
    "generator": "{{ items | map('upper') }}",
    "generator inside": "{{ [items | map('upper')] }}",
    "method": "{{ text.upper }}",
    "joined method": "{{ text ~ text.upper }}",
    "output": "{% set a = text" + " ~ text" * 5000 + " %}" + "{{ a }}" * 5000,
    "loops": "{% for a in items %}" * 3 + "x" + "{% endfor %}" * 3,
    "range": "{% for a in range(99999999) %}x{% endfor %}",
    "letters": "{% for a in text %}{% for b in text %}{% endfor %}{% endfor %}",
    "long list": "{% for a in many %}{% endfor %}",
    "recursive": "{% for a in items recursive %}{{ loop(items) }}{% endfor %}",
    "macro": "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
    "rounding": "{{ 1 | round(-999999999) }}",
    "indent": "{{ items | tojson(indent=999999999) }}",
    "depth": "{{ " + "(" * 5000 + ")" * 5000 + " }}",
    "minus": "{{ " + "-" * 5000 + "1 }}",
    "brackets": "{{ " + "[" * 3000 + "]" * 3000 + " }}",
    "ifs": "{% if text %}" * 3000 + "{% endif %}" * 3000,
    "source": "x" * 100_000,
    "random": "{{ items | random }}",
    "lorem": "{{ lipsum() }}",
    "include": "{% include 'config.yaml' %}",
    "class": "{{ text.__class__.__mro__ }}",
    "attr": "{{ text | attr('__class__') }}",
    "globals": "{{ self.__init__.__globals__ }}",
    "changing": "{{ items.append(1) }}",
    "nested loops": "{% for a in some %}{% for b in some %}{% endfor %}{% endfor %}" * 300,
    "sorting in loops": "{% for a in some %}{% for b in some %}{{ some | sort | first }}{% endfor %}{% endfor %}",
    "unique": "{{ (some | unique | list) | length }}" * 2000,
    "stripping": _LONG + "{{ a.strip(a.replace('1', '')) }}" * 500,
    "trimming": _LONG + "{{ a | trim(a | replace('1', '')) }}" * 500,
    "comparing": _LONG + "{% if a + 'x' == a + 'y' %}{% endif %}" * 1500,
    "looking for": _LONG + "{% if 'xy' in a or 'yx' in a %}{% endif %}" * 1500,
    "selecting": _LONG + "{{ some | map('string') | select('in', a) | list | length }}" * 20,
    "mapping": _LONG + "{{ some | map('string') | map('replace', '1', a) | map('length') | sum }}" * 20,
    "slicing": _LONG + "{{ a[::-1] | length }}" * 1500,
    "testing": _LONG + "{% if a is eq(a) %}{% endif %}" * 1500,
    "splitting": _LONG + "{{ a.split('1') | length }}" * 1500,
    "counting": _LONG + "{{ a | wordcount }}" * 1500,
}

YAMLS = [
    "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
    "a: &a\n  b: *a\n",
    "steps: " + "9" * 5000,
    "a: " + "[" * 100_000,
    "a: " + "{a: " * 100_000,
    "- " * 100_000,
    "? " * 100_000,
    "a: !!python/object/apply:os.system [echo]",
    "a: !!binary AAAA",
    "a: !!bool x",
    "1: 2",
    "? \n",
]

ROWS = [
    ("a.jsonl", b'{"a": ' + b"[" * 100_000),
    ("a.json", b"[" * 100_000),
    ("a.jsonl", b'{"a": ' + b"9" * 5000 + b"}"),
    ("a.csv", b'a,b\n1,"' + b"x" * 200_000),
    ("a.jsonl", b"\xff\xfe{}"),
    ("a.csv", b"a,a\n1,2\n"),
]

TEMPLATE_ROW = {"text": "it was good", "items": ["a", "b"], "n": 3}
HOSTILE_ROW = {**TEMPLATE_ROW, "some": list(range(1000)), "many": list(range(2000))}


@contextmanager
def bounded_memory() -> Iterator[None]:
    """Fail when the peak grows by over 500 MB: what is looked for takes gigabytes, hypothesis itself up to 200 MB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 * 1024
