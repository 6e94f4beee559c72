"""The report's style sheet: it has a rule for what the page draws, and both of its palettes are whole."""

from __future__ import annotations

import re
from pathlib import Path

from zotune import chart, report
from zotune.report_style import STYLE


def test_each_colour_is_there_in_light_and_in_dark() -> None:
    """Every variable that is used is set in both palettes, those of all series of a chart among them."""
    light, dark = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
    names = [set(re.findall(r"(--[\w]+):", part)) for part in (light, dark)]
    used = set(re.findall(r"var\((--\w+)\)", STYLE))
    assert names[0] == names[1] == used
    assert {f"--s{index}" for index in range(chart.COLOURS)} <= used and f"--s{chart.COLOURS}" not in used
    values = [dict(re.findall(r"(--\w+): (#\w+)", part)) for part in (light, dark)]
    assert all(values[0][name] != values[1][name] for name in used)


def test_what_is_drawn_has_a_rule() -> None:
    """Classes and ids that the page and its charts write are named in the sheet: none is without a look."""
    written = set[str]()
    for module in (chart, report):
        for names in re.findall(r'class="([^"]+)"', Path(str(module.__file__)).read_text(encoding="utf-8")):
            written |= {name for name in names.split() if re.fullmatch("[a-z]+", name)}
    written -= {"point"}  # a group, for the pointer
    assert {"card", "big", "quiet", "lead", "swatch", "legend", "wide", "grid", "axis", "level", "note"} <= written
    assert {name for name in written if not re.search(rf"\.{name}\b", STYLE)} == set()
    assert all(f"#{name} " in STYLE for name in ("evaluations", "cost", "config"))


def test_it_needs_nothing_from_elsewhere() -> None:
    """No import, no address, and braces that match: one file is the whole page."""
    assert not re.search(r"@import|url\(|https?:|</style", STYLE)
    depth = 0
    for letter in STYLE:
        depth += (letter == "{") - (letter == "}")
        assert 0 <= depth <= 2
    assert depth == 0 and "prefers-color-scheme: dark" in STYLE and "@media print" in STYLE
