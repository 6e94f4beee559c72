"""`zotune report`: one page of one or several runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest


def test_a_page_beside_the_run_or_where_it_is_asked_for(cli: Any, last: Any, run: Path, tmp_path: Path) -> None:
    """report.html in the first run unless --output names a file; runs that are called alike are numbered."""
    found = last(cli("report", run, "--json"))
    assert found == {
        "output": str(run / "report.html"), "bytes": (run / "report.html").stat().st_size, "runs": ["run"]
    }  # fmt: skip
    assert cli("cp", run, tmp_path / "other" / "run").code == 0
    outcome = cli("report", run, tmp_path / "other" / "run", "--output", tmp_path / "page.html")
    assert (outcome.code, outcome.stderr) == (0, "") and "['run (1)', 'run (2)']" in outcome.stdout
    text = (tmp_path / "page.html").read_text()
    assert (
        text.startswith("<!doctype html>") and "run (2)" in text and not (tmp_path / "other/run/report.html").exists()
    )


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["report", "TO"], 4, "is not a folder"),
        (["report", "RUN", "TO"], 4, "is not a folder"),
        (["report", "RUN", "--output", "TO/page.html"], 4, "page.html cannot be written: .* Remedy: choose another"),
        (["report"], 2, "Missing argument 'RUN...'"),
    ],
)
def test_errors(refused: Any, tmp_path: Path, words: list[str], code: int, said: str) -> None:
    """One run that is none is enough; then no page is written."""
    ended, line = refused([word.replace("TO/", f"{tmp_path}/to/") for word in words])
    assert ended == code and re.search(said, line), line
