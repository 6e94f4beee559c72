"""`zotune methods`."""

from __future__ import annotations

import json
from typing import Any


def test_methods_json_is_a_list(cli: Any, fakes: Any) -> None:
    """With --json a list of objects with the promised names."""
    outcome = cli("methods", "--json")
    rows = json.loads(outcome.stdout)
    assert outcome.code == 0 and rows == fakes.results["table"]
    assert set(rows[0]) == {"name", "arxiv", "forwards_per_step", "state", "replayable"}


def test_methods_table(cli: Any, fakes: Any) -> None:
    """Without --json an aligned table on stderr."""
    outcome = cli("methods")
    assert outcome.stderr == ""
    assert outcome.stdout.splitlines() == [
        "name  arxiv       forwards_per_step  replayable  state",
        "mezo  2305.17333  2                  yes         none",
        "lozo  2305.17333  2                  no          none",
    ]
