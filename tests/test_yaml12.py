"""YAML scalars as people mean them, and nothing that makes an object."""

from __future__ import annotations

import math
from typing import Any

import pytest
import yaml

from zotune.errors import ConfigError
from zotune.yaml12 import dump, parse_mapping, parse_scalar


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-6", 1e-6),
        ("1E6", 1e6),
        ("-.5", -0.5),
        ("3.", 3.0),
        ("12", 12),
        ("-12", -12),
        ("012", 12),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("yes", "yes"),
        ("No", "No"),
        ("on", "on"),
        ("off", "off"),
        ("y", "y"),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("2026-11-21", "2026-11-21"),
        ("0x10", "0x10"),
        ("terrible", "terrible"),
        ("1e-6x", "1e-6x"),
    ],
)
def test_scalars(text: str, value: Any) -> None:
    """A word has the same value in a file and on the command line."""
    for got in (parse_scalar(text), parse_mapping(f"key: {text}", "x")[0]["key"]):
        assert got == value and type(got) is type(value)


def test_infinities() -> None:
    """`.inf` and `.nan` are numbers, `inf` and `nan` words."""
    assert parse_scalar(".inf") == math.inf and parse_scalar("-.inf") == -math.inf
    assert math.isnan(parse_scalar(".nan"))
    assert parse_scalar("inf") == "inf" and parse_scalar("nan") == "nan"


@pytest.mark.parametrize(
    "text", ["a: b", "[1]", "{{ text }} It was", "a, b", "*x", "!!int 3", "'", "a #b", "x\ny", "9" * 5000]
)
def test_more_than_a_word_is_text(text: str) -> None:
    """A value of the command line that is YAML syntax stays what was typed."""
    assert parse_scalar(text) == text


def test_lines_and_values() -> None:
    """Keys come with their lines, comments and a byte order mark are fine, quoted words are text."""
    values, lines = parse_mapping("\ufeff# run\nmodel: m\n\nlabels: ['0', 1]\nsteps: 5 # few\n".encode(), "x")
    assert values == {"model": "m", "labels": ["0", 1], "steps": 5}
    assert lines == {"model": 2, "labels": 4, "steps": 5}


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n"])
def test_empty(text: str) -> None:
    """An empty file holds no options."""
    assert parse_mapping(text, "x")[0] == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "does not hold `key: value` lines"),
        ("just words", "does not hold"),
        ("a: 1\nb: [1, 2\n", "run.yaml line 3 is not valid YAML"),
        ("a: 1\nb: 2\na: 3\n", "run.yaml line 3 is not valid YAML: 'a' stands twice"),
        ("a: !!python/object/apply:os.system ['echo']", "could not determine a constructor"),
        ("a: !!python/name:os.system", "could not determine a constructor"),
        ("a: !x 1", "could not determine a constructor"),
        ("? [a, b]\n: 1", "not valid YAML"),
        ("a: *missing", "an alias"),
        ("a: 1\n---\nb: 2\n", "not valid YAML"),
        ("a: \x00", "not valid YAML"),
        (b"a: \xff\xfe\xfa", "not valid YAML"),
        ("a: " + "[" * 2000, "not valid YAML"),
    ],
)
def test_errors(text: str | bytes, message: str) -> None:
    """What cannot be read is a ConfigError with file and line, never another exception, never an object."""
    with pytest.raises(ConfigError, match=message):
        parse_mapping(text, "run.yaml")


def test_dump_reads_back() -> None:
    """What is written is read with the same values here and by a YAML 1.1 reader."""
    values = {
        "words": [
            "Yes",
            "no",
            "on",
            "1e-6",
            "12",
            "null",
            "true",
            "",
            " a",
            "12:30",
            "0x10",
            "0o7",
            "é\n",
            "\x85",
            "a\x85b",
            "a\u2028\u2029b",
        ],
        "numbers": [1e-6, 1e22, 0.1 + 0.2, -0.0, 3.0, 12, 2**63 - 1, math.inf, 5e-324],
        "others": [None, True, False, {"a": []}],
    }
    values["twice"] = values["words"]  # the same list, not an alias of it
    assert repr(parse_mapping(dump(values), "x")[0]) == repr(values) == repr(yaml.safe_load(dump(values)))
