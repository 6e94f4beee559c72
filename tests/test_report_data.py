"""What the report reads of a run folder: each figure by hand, from records and lines that were written here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from zotune.errors import RunError
from zotune.journal import Journal
from zotune.records import HashRecord, Record, StepRecord
from zotune.report_data import collect
from zotune.run import RunFolder

RECORDS: list[Record] = [
    StepRecord(0, (0.1,), (1.0, 1.5)),
    StepRecord(1, (0.1,), (2.0, 2.0)),
    HashRecord(2, "ab" * 32),
    StepRecord(2, (0.1,), (0.0, 0.0)),
    StepRecord(3, (0.1,), (-4.0, 1.0, 3.0)),
]
ROWS: list[dict[str, Any]] = [
    {"step": 0, "eval": {"loss": 0.5, "examples": 10}},
    *({"step": step, "loss": 1.0, "projected_gradient": 0.5, "lr": 0.1} for step in (1, 2, 3, 4)),
    {"step": 4, "eval": {"loss": 0.25, "accuracy": 0.75, "examples": 10, "low": 0.5, "high": 0.9}},
]


def made(
    folder: Path, records: list[Record] = RECORDS, rows: list[dict[str, Any]] = ROWS, **header: Any
) -> Path:  # fmt: skip
    """A run's folder with these records and lines."""
    with RunFolder.create(folder, "model: m\nsteps: 4\n") as run:
        with Journal.create(run.paths.journal, header) as journal:
            for record in records:
                journal.append(record)
        for row in rows:
            run.log_metrics(row)
    return folder


def timed(folder: Path, *lines: str) -> Path:
    (folder / "timing.jsonl").write_text("".join(lines))
    return folder


def test_figures_of_a_run(tmp_path: Path) -> None:
    """Steps and evaluations apart, every loss counted, and the journal's own size."""
    run = made(tmp_path / "run", torch="2.6")
    found = collect(run)
    assert (found.name, found.config, found.header) == ("run", {"model": "m", "steps": 4}, {"torch": "2.6"})
    assert [row["step"] for row in found.steps] == [1, 2, 3, 4]
    assert found.evals == [
        {"step": 0, "loss": 0.5, "examples": 10},
        {"step": 4, "loss": 0.25, "accuracy": 0.75, "examples": 10, "low": 0.5, "high": 0.9},
    ]  # fmt: skip
    assert found.evaluations == 2 + 2 + 2 + 3 and found.journal_bytes == (run / "journal.zoj").stat().st_size
    assert (found.seconds, found.peak) == (None, None)


@pytest.mark.parametrize(
    ("dtypes", "spacing"),
    [
        ([], 2.0**-23), (["float32"], 2.0**-23), (["bfloat16"], 2.0**-7), (["float16", "float32"], 2.0**-10),
        (["float64"], 2.0**-52),
    ],
)  # fmt: skip
def test_signal_is_the_spread_in_spacings_at_the_loss(tmp_path: Path, dtypes: list[str], spacing: float) -> None:
    """Of the coarsest dtype; a step without any loss but zero has no scale and is left out."""
    parameters = [{"name": str(i), "shape": [2], "dtype": dtype} for i, dtype in enumerate(dtypes)]
    found = collect(made(tmp_path / "run", parameters=parameters)).signal
    assert found == [(1, 0.5 / (1.5 * spacing)), (2, 0.0), (4, 7.0 / (4.0 * spacing))]


def test_time_is_known_when_every_part_told_it(tmp_path: Path) -> None:
    """Parts of a resumed run add up; one that was killed left no line, and the time is not known."""
    parts = [{"steps": 2, "seconds": 1.5, "peak_memory_bytes": 10}, {"steps": 4, "seconds": 0.25}]
    lines = [json.dumps(part) + "\n" for part in parts]
    run = made(tmp_path / "run")
    assert (collect(timed(run, *lines)).seconds, collect(run).peak) == (1.75, 10)
    assert (collect(timed(run, lines[0])).seconds, collect(run).peak) == (None, 10)
    assert (collect(timed(run, lines[1])).seconds, collect(run).peak) == (0.25, None)


def test_what_a_kill_left_of_a_line_is_left_out(tmp_path: Path) -> None:
    """At the end, and in the midst, where a resumed run has written on behind it: the page is made all the same."""
    run = made(tmp_path / "run")
    whole = '{"steps": 4, "seconds": 2.0, "peak_memory_bytes": 7}\n'
    for lines in (('{"steps": 2, "sec' + whole, whole), (whole, '{"steps": 9'), ("[]\n3\n\xff\n", whole)):
        assert (collect(timed(run, *lines)).seconds, collect(run).peak) == (2.0, 7)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    assert len(collect(run).steps) == 4


def test_the_hash_is_that_of_the_last_step(tmp_path: Path) -> None:
    """One recorded on the way says nothing of the end."""
    assert collect(made(tmp_path / "a")).sha256 is None
    assert collect(made(tmp_path / "b", [*RECORDS, HashRecord(4, "cd" * 32)])).sha256 == "cd" * 32


def test_a_run_without_a_step_is_named(tmp_path: Path) -> None:
    """In the journal, or in the metrics: what is there cannot be shown."""
    for name, records, rows in (("a", RECORDS[2:3], ROWS), ("b", RECORDS, ROWS[:1])):
        run = made(tmp_path / name, records, rows)
        with pytest.raises(RunError, match=rf"{name} has no step to report. Remedy: `zotune resume .*{name}` first."):
            collect(run)
