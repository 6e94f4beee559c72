"""`zotune push`: flags reach what uploads; nothing here does."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest


def test_push_takes_one_content(cli: Any, run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flags reach `push`; two contents are one too many."""
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr("zotune.push.push", lambda *given: calls.append(given) or {"url": "u"})
    assert json.loads(cli("push", run_folder, "me/x", "--journal", "--private", "--json").stdout) == {"url": "u"}
    (run, repo, _, content, private, to, trust) = calls[0]
    assert (run, repo, content, private, to, trust) == (run_folder, "me/x", "journal", True, None, False)
    outcome = cli("push", run_folder, "me/x", "--journal", "--merge")
    assert outcome.code == 2 and "--merge and --journal were given" in outcome.stderr


def test_the_folder_can_be_looked_at_first(cli: Any, last: Any, run: Path, tmp_path: Path) -> None:
    """With --to nothing is uploaded: the card, and the run without the paths of this machine."""
    found = last(cli("push", run, "me/x", "--journal", "--to", tmp_path / "out", "--json"))
    assert (found["url"], found["to"]) == (None, str(tmp_path / "out")) and "README.md" in found["files"]
    assert not any(name.endswith(".safetensors") for name in found["files"])
    assert (tmp_path / "out" / "zotune" / "journal.zoj").read_bytes() == (run / "journal.zoj").read_bytes()
    assert str(tmp_path) not in (tmp_path / "out" / "zotune" / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (
            ["push", "RUN", "a name", "--journal", "--to", "TO"],
            2,
            "'a name' is no name of a repository. Remedy: USER/NAME",
        ),
        (["push", "TO", "me/x"], 4, "is not a folder"),
        (["push", "RUN"], 2, "Missing argument 'USER/NAME'"),
    ],
)
def test_what_cannot_be_pushed(refused: Any, words: list[str], code: int, said: str) -> None:
    """Known before anything is built."""
    ended, line = refused(words)
    assert ended == code and re.search(said, line), line
