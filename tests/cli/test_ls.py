"""`zotune ls`: a table for people, a list for programs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any


def test_ls_lists_runs(cli: Any, run_folder: Path) -> None:
    """A table for people, a list for programs."""
    outcome = cli("ls", run_folder.parent)
    assert outcome.code == 0 and str(run_folder) in outcome.stdout and "1 run\n" in outcome.stdout
    assert "unfinished" in outcome.stdout
    assert [row["run"] for row in json.loads(cli("ls", run_folder.parent, "--json").stdout)] == [str(run_folder)]
    assert cli("ls", run_folder / "none").code == 4


def test_a_finished_run_and_one_that_cannot_be_read(cli: Any, last: Any, run: Path) -> None:
    """Steps, both accuracies and the state in aligned columns; what is wrong with a run stands in its row."""
    (run.parent / "spoiled").mkdir()
    (run.parent / "spoiled" / "journal.zoj").write_bytes(b"nonsense")
    first, spoiled = last(cli("ls", run.parent, "--json"))
    accuracies = f"{100 * first['accuracy_before']:.1f} -> {100 * first['accuracy']:.1f} %"
    lines = cli("ls", run.parent).stdout.splitlines()
    assert lines[0].split() == ["run", "method", "scope", "step", "accuracy", "state"] and lines[-1] == "2 runs"
    assert re.split(r" {2,}", lines[1]) == [str(run), "mezo", "full", "7/7", accuracies, "finished"]
    assert "is not a zotune journal" in spoiled["problem"] and lines[2].endswith(spoiled["problem"])
    assert lines[0].index("state") == lines[1].rindex("finished") == lines[2].rindex(spoiled["problem"])


def test_no_folder(cli: Any, refused: Any, tmp_path: Path) -> None:
    """Where there is nothing, nothing is listed; what is no folder is an error."""
    (tmp_path / "empty").mkdir()
    assert cli("ls", tmp_path / "empty").stdout == "0 runs\n"
    ended, line = refused(["ls", "TO"])
    assert ended == 4 and re.search("to is not a folder. Remedy: name one that holds runs.", line), line
