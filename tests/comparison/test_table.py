"""The table: figures with their intervals, what a row has none of, and why one could not run."""

from __future__ import annotations

from typing import Any

from zotune.comparison.table import NOTE, lines, markdown

ROWS: list[dict[str, Any]] = [
    {
        "row": "zero-shot", "scope": None, "accuracy": 0.5, "low": 0.402, "high": 0.598, "loss": 1.2345,
        "forwards": 0, "seconds": 3.2, "peak_memory_bytes": 640_000_000,
    },
    {
        "row": "mezo-lora", "scope": "lora", "accuracy": 0.75, "low": 0.7, "high": 0.8, "loss": 0.5, "lr": 1e-4,
        "steps": 2000, "forwards": 4000, "seconds": 200.0, "continued": True, "peak_memory_bytes": 1_300_000_000,
    },
    {"row": "sgd", "error": "its process was killed | by a\nsignal."},
    {
        "row": "adamw", "scope": "full", "f1": 0.25, "low": None, "high": None, "loss": "nan", "lr": 1e-5,
        "steps": 5, "forwards": 10, "backwards": 10, "seconds": 61.0, "peak_memory_bytes": 0,
    },
    {"row": "es-lora", "scope": "lora", "reward": 0.1234, "low": 0.1, "high": 0.2, "loss": -0.1, "lr": 1e-5, "steps": 5,
     "forwards": 10, "seconds": 1.0, "peak_memory_bytes": 1000},
]  # fmt: skip
EXPECTED = """\
row        scope  score (95 %)            loss    lr      steps  forwards  time            memory
zero-shot  -      50.0 % (40.2 to 59.8)   1.234   -       -      0         3s              640 MB
mezo-lora  lora   75.0 % (70.0 to 80.0)   0.500   0.0001  2,000  4,000     at least 3m20s  1.3 GB
sgd        -      cannot run: its process was killed | by a signal.
adamw      full   f1 25.0 %               nan     1e-05   5      10+b      1m01s           -
es-lora    lora   reward 0.123 (0.100 to 0.200)  -0.100  1e-05   5      10        1s              1 kB
"""


def test_lines() -> None:
    """Word for word, columns by their widest cell."""
    found = lines(ROWS)
    assert [" ".join(line.split()) for line in found] == [" ".join(line.split()) for line in EXPECTED.splitlines()]
    starts = {line.index("640 MB") if "640" in line else line.index("1.3 GB") for line in found[1:3]}
    assert len(starts) == 1 and found[0].index("memory") in starts


def test_markdown() -> None:
    """What the rows share, a row each, every cell in its line; how to read it."""
    text = markdown({"about": {"model": "m", "label_words": ["a", "b"]}, "rows": ROWS})
    assert "- label_words: a, b\n" in text and NOTE in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(ROWS)
    assert {line.replace("\\|", "").count("|") for line in table} == {table[0].count("|")}
    assert "cannot run: its process was killed \\| by a signal." in table[4]
