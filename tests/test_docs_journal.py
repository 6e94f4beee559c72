"""What docs/journal.md lists is what the code does: the keys of a header, and which options may change."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from zotune.config import FIXED, INPUTS, NEVER_FROM_FILE, OPTIONS, PLACES, TrainConfig
from zotune.history.branch import branch
from zotune.journal import read
from zotune.train import train
from zotune.watch import Quiet

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "journal.md").read_text(encoding="utf-8")


def rows(heading: str) -> list[list[str]]:
    """The rows of every table under a heading with this first line."""
    found = []
    for table in PAGE.split(heading)[1:]:
        for line in table.splitlines()[1:]:  # below the dashes
            if not line.startswith("|"):
                break
            found.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return found


def named(cell: str) -> list[str]:
    return re.findall(r"`(\w+)`", cell)


def test_options_that_may_change() -> None:
    """Each option stands in the table once, and what the table says of it is what PLACES, FIXED and INPUTS say."""
    table = rows("| options | `resume` | `branch --set` |\n")
    assert sorted(name for row in table for name in named(row[0])) == sorted(OPTIONS)
    for options, resumed, branched in table:
        for name in named(options):
            may = name in PLACES and name not in NEVER_FROM_FILE
            assert (resumed.startswith("may ") or name == "output_dir") == may, name
            refused = name in (*FIXED, "output_dir", *NEVER_FROM_FILE)
            assert branched.startswith("refused") == refused and (refused or branched.startswith("may change")), name
    read_by_a_reader = {name for row in table if "`template`" in row[0] for name in named(row[0])}
    assert read_by_a_reader | {"train", "eval", "data_dir"} == set(INPUTS)
    assert not set(FIXED) & set(INPUTS)


def test_keys_of_a_header(config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    """The tables name every key that a header can have, and no other; `only` stands where a plain run has none."""
    tables = rows("| key | content |\n")
    (tmp_path / "own.py").write_text("def score(completions, **_):\n    return [0.0] * len(completions)\n")
    scored = {
        "label_words": None, "completion_column": "text", "max_new_tokens": 2,
        "reward": [f"{tmp_path}/own.py:score"], "on_nonfinite": "halve-eps",
    }  # fmt: skip
    train(config(steps=1), Quiet())
    train(config(steps=1, output_dir=tmp_path / "scored", **scored), Quiet())
    branch(tmp_path / "run", 1, tmp_path / "branch", {})
    headers = [set(read(tmp_path / name / "journal.zoj")[0]) for name in ("run", "scored", "branch")]
    assert {key for row in tables for key in named(row[0])} == set.union(*headers)
    optional = {key for row in tables if row[1].startswith("only ") for key in named(row[0])}
    assert optional == set.union(*headers) - headers[0]
