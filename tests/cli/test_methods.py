"""`zotune methods`."""

from __future__ import annotations

import json
from typing import Any

from zotune.cli.methods import lines
from zotune.methods import table


def test_methods_json_is_a_list(cli: Any, fakes: Any) -> None:
    """With --json a list of objects with the promised names."""
    outcome = cli("methods", "--json")
    rows = json.loads(outcome.stdout)
    assert outcome.code == 0 and rows == fakes.results["table"]
    assert set(rows[0]) == {"name", "arxiv", "forwards_per_step", "state", "replayable"}


def test_methods_table(cli: Any, fakes: Any) -> None:
    """Without --json an aligned table on stdout."""
    outcome = cli("methods")
    assert outcome.stderr == ""
    assert outcome.stdout.splitlines() == [
        "name  arxiv       forwards_per_step  replayable  state",
        "mezo  2305.17333  2                  yes         none",
        "lozo  2305.17333  2                  no          none",
    ]


def test_a_terminal_gets_no_line_that_it_would_break() -> None:
    """The real table within 80 and 120 columns: nothing is lost, each method begins a line."""
    rows = table()
    whole = lines(rows, None)
    assert len(whole) == 1 + len(rows) and max(map(len, whole)) > 120
    for width in (80, 120):
        found = lines(rows, width)
        assert max(map(len, found)) <= width
        assert sorted(" ".join(found).split()) == sorted(" ".join(whole).split())
        assert [line.split()[0] for line in found[1:] if not line.startswith(" ")] == [row["name"] for row in rows]
