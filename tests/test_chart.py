"""Charts: where things are drawn, by hand; which numbers stand at the axes, and how they are written."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from zotune.chart import COLOURS, Plot, bounds, label_of, log_ticks, ticks

# The box of a plot of 640 x 280 pixels: 70 to 626 across, 12 to 236 down.


def drawn(plot: Plot) -> ElementTree.Element:
    """The drawing, parsed: it is well-formed."""
    return ElementTree.fromstring(plot.svg("a & b"))


def test_a_line_lies_where_its_values_do() -> None:
    """Corners and middle of the box; a value that is not finite, or too small for a logarithm, interrupts it."""
    plot = Plot((0, 10), (0, 1), "x", "y")
    plot.line([0, 5, 10], [0, 0.5, 1], 7, "<a>")
    plot.line([0, 1, 2, 3, 4], [math.nan, 1, math.inf, math.nan, 0], 0, "broken", faint=True)
    first, *others = drawn(plot).findall("polyline")
    assert first.attrib == {"class": "line s1", "data-name": "<a>", "points": "70.00,236.00 348.00,124.00 626.00,12.00"}
    assert [(each.get("class"), each.get("points")) for each in others] == [
        ("faint s0", "125.60,12.00"), ("faint s0", "292.40,236.00")
    ]  # fmt: skip
    plot = Plot((0, 10), (1, 100), "x", "y", log_y=True)
    plot.line([0, 5, 6, 10], [1, 10, 0, 1000], 0, "log")
    points = [each.get("points") for each in drawn(plot).findall("polyline")]
    assert points == ["70.00,236.00 348.00,124.00", "626.00,12.00"]  # beyond the domain: at its edge


def test_points_have_whiskers_and_titles() -> None:
    """A whisker from the low to the high end where both are known; the title is text, whatever it holds."""
    plot = Plot((0, 10), (0, 1), "x", "y")
    plot.point(5, 0.5, 2, "<b> & c", 0.25, 0.75)
    plot.point(5, 0.5, 2, "bare", 0.25)
    one, bare = drawn(plot).findall("g")
    assert [child.tag for child in bare] == ["circle", "title"] and one[2].text == "<b> & c"
    assert one[0].get("d") == "M348.00 180.00V68.00M344.00 180.00h8M344.00 68.00h8"
    assert (one[1].get("class"), one[1].get("cx"), one[1].get("cy")) == ("s2", "348.00", "124.00")


def test_a_histogram_is_an_outline_from_the_foot() -> None:
    """Up to each height, across to the next edge, and down again."""
    plot = Plot((0, 4), (0, 2), "x", "y")
    plot.bars([0, 2, 4], [1, 2], 0)
    (path,) = [each for each in drawn(plot).findall("path") if each.get("class") == "bars s0"]
    assert path.get("d") == "M70.00 236.00V124.00H348.00V12.00H626.00V236.00Z"


def test_a_level_is_drawn_where_it_lies_in_the_domain() -> None:
    """With its words; outside there is nothing."""
    plot = Plot((0, 1), (0, 1), "x", "y")
    plot.level(0.5, "half <")
    plot.level(1.5, "beyond")
    svg = plot.svg("t")
    assert 'class="level" d="M70 124.00h556"' in svg and "half &lt;</text>" in svg and "beyond" not in svg


def test_a_drawing_says_what_it_shows() -> None:
    """Domain and box can be read back; a domain of one value is widened; labels are text; percent are a hundredfold."""
    plot = Plot((3, 3), (0, 0), "x & y", "<z>", percent_y=True, width=300, height=100)
    root = drawn(plot)
    assert (root.get("aria-label"), root.get("viewBox")) == ("a & b", "0 0 300 100")
    assert (root.get("data-x"), root.get("data-y"), root.get("data-log")) == ("2.7 3.3", "-1.0 1.0", "0")
    assert root.get("data-box") == "70 12 216 44"
    texts = [each.text for each in root.findall("text")]
    assert {"x & y", "<z>", "-100 %", "0 %", "100 %"} <= set(texts)
    assert not re.search("nan|inf", plot.svg("t"))


@pytest.mark.parametrize(
    ("low", "high", "most", "expected"),
    [
        (0, 10, 7, [0, 2, 4, 6, 8, 10]),
        (0, 1, 6, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.3, 0.7, 4, [0.3, 0.4, 0.5, 0.6, 0.7]),
        (-7, 7, 3, [-5, 0, 5]),
        (995, 1005, 2, [995, 1000, 1005]),
        (0, 7e-7, 7, [0, 1e-7, 2e-7, 3e-7, 4e-7, 5e-7, 6e-7, 7e-7]),
    ],
)
def test_ticks_are_round_and_within(low: float, high: float, most: int, expected: list[float]) -> None:
    """1, 2 or 5 times a power of ten apart, both ends included where they are round."""
    assert ticks(low, high, most) == pytest.approx(expected)


def test_ticks_of_a_logarithm() -> None:
    """Powers of ten, every second or third of them where there are many; less than a decade has round numbers."""
    assert log_ticks(0.5, 2000) == [1, 10, 100, 1000]
    assert log_ticks(1e-3, 1e10) == [1e-3, 0.1, 10, 1e3, 1e5, 1e7, 1e9]
    assert log_ticks(2, 8) == [2, 4, 6, 8] and log_ticks(0.5, 3) == pytest.approx([0.5, 1, 1.5, 2, 2.5, 3])


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0, "0"), (0.25, "0.25"), (1500, "1,500"), (99999, "99,999"), (1e5, "10\u2075"), (2.5e6, "2.5\u00d710\u2076"),
        (1e-3, "0.001"), (2e-4, "2\u00d710\u207b\u2074"), (-3, "\u22123"), (-1e-7, "\u221210\u207b\u2077"), (-0.0, "0"),
    ],
)  # fmt: skip
def test_numbers_of_an_axis(value: float, said: str) -> None:
    """Short, with a true minus and a power of ten where they are very large or small."""
    assert label_of(value) == said


def test_bounds() -> None:
    """A margin around what is finite; without anything to show, the unit interval."""
    assert bounds([1, math.nan, 3, -math.inf], 0.1) == pytest.approx((0.8, 3.2))
    assert bounds([2, 2]) == (2, 2) and bounds([]) == bounds([math.nan]) == (0, 1)
    assert COLOURS == 6
