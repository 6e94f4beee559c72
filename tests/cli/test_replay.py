"""`zotune replay RUN [--verify] [--to DIR]`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULT = {
    "steps": 5,
    "weights_sha256": "ab",
    "journal_bytes": 1,
    "seconds": 0.1,
    "recorded_sha256": "ab",
    "verified": True,
}


def test_replay(cli: Any, fakes: Any, run_folder: Path, tmp_path: Path) -> None:
    """The options reach `replay`; its result is printed."""
    fakes.results["replay"] = RESULT
    outcome = cli("replay", run_folder, "--verify", "--to", tmp_path / "out", "--json")
    assert outcome.code == 0 and json.loads(outcome.stdout) == RESULT
    (name, arguments, named) = fakes.calls[0]
    assert (name, arguments) == ("replay", (run_folder,))
    assert (named["verify"], named["to"], named["trust_remote_code"]) == (True, tmp_path / "out", False)


def test_defaults(cli: Any, fakes: Any, run_folder: Path) -> None:
    """Nothing is verified or saved unless asked for; the flag that lets a model's code run is passed on."""
    assert cli("replay", run_folder, "--trust-remote-code").code == 0
    named = fakes.calls[0][2]
    assert (named["verify"], named["to"], named["trust_remote_code"]) == (False, None, True)


def test_replay_needs_a_run(cli: Any, fakes: Any, tmp_path: Path) -> None:
    """A folder without a journal is exit code 4 before anything heavy is imported."""
    outcome = cli("replay", tmp_path, "--json")
    assert outcome.code == 4 and "holds no run" in json.loads(outcome.stdout)["error"]
    assert fakes.calls == []


def test_replay_to_a_folder_with_content(cli: Any, run: Path, tmp_path: Path) -> None:
    """`zotune replay --to` no more writes among other files; with --force the folder is replaced."""
    to = tmp_path / "to"
    to.mkdir()
    (to / "notes").touch()
    outcome = cli("replay", run, "--to", to)
    assert outcome.code == 4 and "is not empty" in outcome.stderr and (to / "notes").exists()
    assert cli("replay", run, "--to", to, "--force").code == 0
    assert not (to / "notes").exists() and (to / "model.safetensors").exists()
