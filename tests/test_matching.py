"""Searching names for a pattern from anywhere: as `re` does, in bounded time."""

from __future__ import annotations

import re
import time

import pytest

from zotune import matching
from zotune.matching import BadPattern, found_in

NAMES = [f"model.layers.{i}.{part}.weight" for i in range(12) for part in ("self_attn.q_proj", "mlp.up", "norm")]
NAMES += ["model.embed_tokens.weight", "lm_head.weight", "é\n.bias"]


@pytest.mark.parametrize(
    "pattern",
    [
        "q_proj|up", r"layers\.1\.", "^model", "weight$", "[0-9]", ".", "", "é", r"\d\.norm",
        r"layers\.(0|11)\..*weight$",
        r"^(?!.*(norm|embed))", r"layers\.[0-9]{2}\.", "a?b*c+", r"(\w+)\.\1", "(?i)NORM", r"q_proj\Z|bias$",
    ],
)  # fmt: skip
def test_the_same_as_re(pattern: str) -> None:
    """Whether it is searched for here or in a process of its own."""
    assert found_in(pattern, NAMES) == [bool(re.search(pattern, name)) for name in NAMES]


@pytest.mark.parametrize(
    "pattern", ["(", "[", "*", "(?P<a>", "a{99999999999999999999}", "(" * 5000, "x" * 100_001, "\\"]
)
def test_what_is_no_pattern(pattern: str) -> None:
    """A reason, whatever `re` raises for it."""
    with pytest.raises(BadPattern) as found:
        found_in(pattern, NAMES)
    assert str(found.value)


@pytest.mark.parametrize("pattern", [r"(\w+\.?)+!", "(.|..)*!", r"(.*)*(.*)*(.*)*!", "(?:(?:[a-z._]|[a-z.])+)+!"])
def test_what_would_take_years(monkeypatch: pytest.MonkeyPatch, pattern: str) -> None:
    """It is ended, and said."""
    monkeypatch.setattr(matching, "SECONDS", 0.5)
    begun = time.monotonic()
    with pytest.raises(BadPattern, match="takes longer than 0.5 seconds"):
        found_in(pattern, ["model.layers.0.self_attn.q_proj.weight" * 3])
    assert time.monotonic() - begun < 20
