"""`zotune cp`: a copy of a run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any


def test_cp_copies_a_run(cli: Any, run_folder: Path, tmp_path: Path) -> None:
    """The copy is a run with the same journal; without a run there is nothing to copy."""
    outcome = cli("cp", run_folder, tmp_path / "copy", "--no-snapshots", "--json")
    assert outcome.code == 0 and json.loads(outcome.stdout)["to"] == str(tmp_path / "copy")
    assert (tmp_path / "copy" / "journal.zoj").read_bytes() == (run_folder / "journal.zoj").read_bytes()
    assert cli("cp", tmp_path / "none", tmp_path / "other").code == 4


def test_snapshots_are_copied_unless_asked_not_to(cli: Any, last: Any, run: Path, tmp_path: Path) -> None:
    """They make the copy larger and a resume shorter; either copy resumes to the run's own end."""
    ends = set()
    for name, flags in (("whole", []), ("light", ["--no-snapshots"])):
        found = last(cli("cp", run, tmp_path / name, *flags, "--json"))
        files = [path for path in (tmp_path / name).rglob("*") if path.is_file()]
        assert found["steps"] == 7 and found["bytes"] == sum(path.stat().st_size for path in files)
        assert (tmp_path / name / "snapshots").exists() == (name == "whole")
        ends.add(last(cli("resume", tmp_path / name, "--json"))["weights_sha256"])
    assert len(ends) == 1


def test_a_folder_with_content_is_left_alone(cli: Any, refused: Any, run: Path, tmp_path: Path) -> None:
    """There is no flag to replace one."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("x")
    outcome = cli("cp", run, tmp_path / "mine")
    assert outcome.code == 4 and "mine is not empty. Remedy: name another folder." in outcome.stderr
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes"]
    ended, line = refused(["cp", "RUN", "RUN"])
    assert ended == 4 and re.search("run is not empty", line), line
