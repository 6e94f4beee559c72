"""The report: one page without outside parts, whose numbers are those of the run folder."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from zotune.config import TrainConfig
from zotune.errors import RunError
from zotune.report import collect, page, write_report
from zotune.train import train
from zotune.watch import Quiet

VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """The elements of a page with their texts; fails on tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, Any]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.texts: list[str] = []
        self._table: list[list[str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "table":
            self._table = self.tables[dict(attrs)["id"] or ""] = []
        if tag == "tr":
            self._table.append([])
        if tag in ("td", "th"):
            self._table[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self.open and {"td", "th"} & set(self.open) and "table" in self.open:
            self._table[-1][-1] += data

    def plots(self) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
        """Each drawing's attributes and those of the lines in it."""
        found: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []
        for tag, attributes in self.elements:
            if tag == "svg":
                found.append((attributes, []))
            elif tag == "polyline":
                found[-1][1].append(attributes)
        return found


def drawn(plot: dict[str, Any], line: dict[str, Any]) -> list[tuple[float, float]]:
    """The values that a line shows, read back from its pixels."""
    left, top, width, height = map(float, plot["data-box"].split())
    (x0, x1), (y0, y1) = ([float(value) for value in plot[f"data-{axis}"].split()] for axis in "xy")
    if plot["data-log"] == "1":
        y0, y1 = math.log(y0), math.log(y1)
    points = [tuple(map(float, point.split(","))) for point in line["points"].split()]
    values = [(x0 + (x - left) / width * (x1 - x0), y1 - (y - top) / height * (y1 - y0)) for x, y in points]
    return [(x, math.exp(y)) for x, y in values] if plot["data-log"] == "1" else values


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def runs(config: Callable[..., TrainConfig], tmp_path: Path) -> list[Path]:
    """Two runs with evaluations on the way, of other lengths."""
    for name, steps in (("a", 7), ("b<&>", 5)):
        train(config(output_dir=tmp_path / name, steps=steps, eval_every=3), Quiet())
    return [tmp_path / "a", tmp_path / "b<&>"]


def test_page_has_no_outside_parts(runs: list[Path], tmp_path: Path) -> None:
    """One file: well-formed, no script, no link, no picture or style from elsewhere; names are escaped."""
    found = write_report(runs, tmp_path / "out.html")
    text = (tmp_path / "out.html").read_text()
    assert found["bytes"] == (tmp_path / "out.html").stat().st_size and found["runs"] == ["a", "b<&>"]
    parsed = Page(text)
    tags = {tag for tag, _ in parsed.elements}
    assert not tags & {"script", "link", "img", "iframe", "object"}
    assert not re.search(r"https?:|url\(|@import|src=|href=", text)
    assert "b<&>" in parsed.texts and "prefers-color-scheme: dark" in text


def test_tables_are_the_metrics(runs: list[Path]) -> None:
    """Every evaluation of metrics.jsonl is a row of the table, and the interval stands beside its accuracy."""
    table = Page(page([collect(run) for run in runs])).tables["evaluations"][1:]
    expected = [(run.name, row["step"], row["eval"]) for run in runs for row in metrics(run) if "eval" in row]
    assert len(table) == len(expected) == 4 + 3
    for cells, (name, step, found) in zip(table, expected, strict=True):
        assert cells == [
            name, str(step), f"{100 * found['accuracy']:.1f} %",
            f"{100 * found['low']:.1f} to {100 * found['high']:.1f} %", f"{found['loss']:.4f}", "10",
        ]  # fmt: skip


def test_scores(config: Callable[..., TrainConfig]) -> None:
    """A run on a score shows it before and after, and does not call its loss nats."""
    settings = config(objective="macro_f1", scope="norms", eps=0.5, steps=2)
    found = train(settings, Quiet())
    parsed = Page(page([collect(settings.output_dir)]))
    assert f"{100 * found['macro_f1_after']:.1f} %" in parsed.texts and "macro F1 on 10 held-out rows" in parsed.texts
    assert any("minus the score" in text for text in parsed.texts) and "loss in nats" not in parsed.texts
    table = parsed.tables["evaluations"]
    assert table[0] == ["run", "step", "macro F1", "95 % interval", "loss", "rows"]
    assert table[-1][2:4] == [f"{100 * found['macro_f1_after']:.1f} %", "-"]


@pytest.mark.parametrize(
    ("key", "name", "said", "interval"),
    [
        ("f1", "F1", "25.0 %", "20.0 to 30.0 %"),
        ("exact_match", "exact match", "25.0 %", "20.0 to 30.0 %"),
        ("reward", "reward", "0.250", "0.200 to 0.300"),
        ("metric", "metric", "0.250", "-"),
    ],
)
def test_every_score_has_its_table_interval_and_curve(
    runs: list[Path], key: str, name: str, said: str, interval: str
) -> None:
    """What a run is judged by is shown like an accuracy; beside a run that has one, each says what it is."""
    ends = {"low": 0.2, "high": 0.3} if interval != "-" else {"low": None, "high": None}
    rows = metrics(runs[0])
    for row in rows:
        if "eval" in row:
            row["eval"] = {"loss": -0.25, "accuracy": None, "examples": 10, **ends, key: 0.25}
    (runs[0] / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    parsed = Page(page([collect(runs[0])]))
    assert parsed.tables["evaluations"][1][2:4] == [said, interval] and parsed.tables["evaluations"][0][2] == name
    plot, lines = next(each for each in parsed.plots() if "on held-out rows by step" in each[0]["aria-label"])
    line = next(line for line in lines if line["data-name"] == f"a {name}")
    assert [y for _, y in drawn(plot, line)] == pytest.approx([0.25] * 4, abs=1e-3)
    assert ("95 % intervals" in plot["aria-label"]) == (interval != "-")
    both = Page(page([collect(run) for run in runs]))
    assert both.tables["evaluations"][0][2] == "score" and both.tables["evaluations"][1][2] == f"{name} {said}"
    assert both.tables["evaluations"][5][2].startswith("accuracy ")
    assert sum("on held-out rows by step" in each["aria-label"] for each, _ in both.plots()) == 2


def test_a_method_that_reads_the_rows_does_not_promise_a_replay_without(
    config: Callable[..., TrainConfig], runs: list[Path]
) -> None:
    """AGZO's directions come out of the rows: the page says so, alone and beside a method whose do not."""
    settings = config(method="agzo", method_args={"rank": 2}, steps=2, eval=None)
    train(settings, Quiet())
    alone, beside = (" ".join(Page(page(data)).texts) for data in (
        [collect(settings.output_dir)], [collect(settings.output_dir), collect(runs[0])]
    ))  # fmt: skip
    assert "no data" not in alone and "A replay of agzo takes the run's training rows too" in alone
    assert "A replay of agzo takes" in beside and "Of the others the journal and the base model are all" in beside
    assert "no data and no forward pass" in " ".join(Page(page([collect(runs[0])])).texts)


def test_curves_are_the_metrics(runs: list[Path]) -> None:
    """The faint line of the loss plot, read back from its pixels, is the loss of each step; so is the accuracy."""
    plots = Page(page([collect(run) for run in runs])).plots()
    for plot, lines in plots[:2]:
        y0, y1 = map(float, plot["data-y"].split())
        for run in runs:
            rows = metrics(run)
            if plot is plots[0][0]:
                wanted, values = f"{run.name} loss", [(r["step"], r["loss"]) for r in rows if "loss" in r]
            else:
                wanted = f"{run.name} accuracy"
                values = [(r["step"], r["eval"]["accuracy"]) for r in rows if "eval" in r]
            line = next(line for line in lines if line["data-name"] == wanted)
            for (x, y), (step, value) in zip(drawn(plot, line), values, strict=True):
                assert x == pytest.approx(step, abs=0.01)
                assert y == pytest.approx(value, abs=(y1 - y0) * 1e-3)


def test_histogram_counts_every_step(runs: list[Path]) -> None:
    """The bars of the projected gradient add up to the steps."""
    text = page([collect(runs[0])])
    plot = next(attributes for attributes, _ in Page(text).plots() if "Histogram" in attributes["aria-label"])
    path = re.search(r'class="bars s0" d="([^"]+)"', text)
    assert path
    _, top, _, height = map(float, plot["data-box"].split())
    y0, y1 = map(float, plot["data-y"].split())
    levels = [float(value) for value in re.findall(r"V([\d.]+)H", path[1])]
    assert sum(y1 - (level - top) / height * (y1 - y0) for level in levels) == pytest.approx(7, abs=0.05)


def test_signal_is_that_of_the_journal(runs: list[Path]) -> None:
    """Signal over rounding is |L+ - L-| in spacings of float32 at the loss."""
    from zotune.revisit import log_rows

    plot, lines = Page(page([collect(runs[0])])).plots()[-1]
    rows = log_rows(runs[0])
    expected = [abs(row["losses"][0] - row["losses"][1]) / (2.0**-23 * max(row["losses"])) for row in rows]
    found = [y for _, y in drawn(plot, lines[0])]
    assert found == pytest.approx(expected, rel=0.02)


def test_numbers_that_are_not_finite_are_shown(runs: list[Path]) -> None:
    """A loss that is not finite interrupts the curve; it is no reason to have no page, and no zero."""
    lines = (runs[0] / "metrics.jsonl").read_text().splitlines()
    spoiled = [re.sub(r'"loss": [\d.]+', '"loss": "nan"', line) if i == 3 else line for i, line in enumerate(lines)]
    (runs[0] / "metrics.jsonl").write_text("\n".join(spoiled) + "\n")
    plot, shown = Page(page([collect(runs[0])])).plots()[0]
    pieces = [line for line in shown if line["data-name"] == "a loss"]
    assert len(pieces) == 2 and sum(len(drawn(plot, piece)) for piece in pieces) == 6


def test_bad_folders_are_named(tmp_path: Path, runs: list[Path]) -> None:
    """No run, no step, or an output that cannot be written: one sentence with the remedy."""
    with pytest.raises(RunError, match=r"not a folder.*Remedy"):
        collect(tmp_path / "none")
    (runs[0] / "metrics.jsonl").write_text("")
    with pytest.raises(RunError, match=r"no step to report. Remedy: `zotune resume"):
        collect(runs[0])
    with pytest.raises(RunError, match="cannot be written"):
        write_report(runs[1:], tmp_path / "no" / "folder.html")


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine: the page is parsed, not drawn")
def test_page_opens_in_a_browser(runs: list[Path], tmp_path: Path) -> None:
    """A real browser draws the page: the circles of the evaluations lie where the layout has room for them."""
    write_report(runs, tmp_path / "out.html")
    # The probe is part of the test alone: it says what the browser made of the page.
    probe = (
        "<script>onload=()=>{const r=[...document.querySelectorAll('svg')].map(s=>s.getBoundingClientRect());"
        "const w=[...document.querySelectorAll('main *')].map(e=>e.getBoundingClientRect().right);"
        "document.title=JSON.stringify([r.length,Math.min(...r.map(b=>b.height)),"
        "document.querySelectorAll('circle').length,Math.max(...w.filter(x=>x>innerWidth),0)])}</script></body>"
    )
    path = tmp_path / "probed.html"
    path.write_text((tmp_path / "out.html").read_text().replace("</body>", probe))
    command = [
        str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=900,1200", "--dump-dom", path.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    found = re.search(r"<title>(\[.*?\])</title>", done.stdout)
    assert done.returncode == 0 and found, done.stderr
    plots, lowest, circles, overflow = json.loads(found[1])
    assert plots == 4 and lowest > 150 and circles == 14 and overflow == 0
