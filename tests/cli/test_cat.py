"""`zotune cat`: a run's config, as YAML and as JSON."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from zotune.resolve import read_file


def test_cat_is_a_config(cli: Any, run_folder: Path, tmp_path: Path) -> None:
    """stdout holds YAML with the values of the run's config, or the same as JSON."""
    outcome = cli("cat", run_folder)
    (tmp_path / "copy.yaml").write_text(outcome.stdout)
    values = read_file(run_folder / "config.yaml")[0]
    assert outcome.code == 0 and read_file(tmp_path / "copy.yaml")[0] == values
    assert json.loads(cli("cat", run_folder, "--json").stdout) == values


def test_what_is_no_run(refused: Any) -> None:
    """A folder that is not there."""
    ended, line = refused(["cat", "TO"])
    assert ended == 4 and re.search("to is not a folder. Remedy: name a run folder", line), line
