"""`ls`, `cat`, `init`, `schema`, `doctor`, `report`, `export` and `plan` on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from zotune.config import NEVER_FROM_FILE, OPTIONS
from zotune.resolve import read_file


def test_cat_is_a_config(cli: Any, run_folder: Path, tmp_path: Path) -> None:
    """stdout holds YAML with the values of the run's config, or the same as JSON."""
    outcome = cli("cat", run_folder)
    (tmp_path / "copy.yaml").write_text(outcome.stdout)
    values = read_file(run_folder / "config.yaml")[0]
    assert outcome.code == 0 and read_file(tmp_path / "copy.yaml")[0] == values
    assert json.loads(cli("cat", run_folder, "--json").stdout) == values


def test_ls_lists_runs(cli: Any, run_folder: Path) -> None:
    """A table for people, a list for programs."""
    outcome = cli("ls", run_folder.parent)
    assert outcome.code == 0 and str(run_folder) in outcome.stderr and "1 run\n" in outcome.stderr
    assert "unfinished" in outcome.stderr
    assert [row["run"] for row in json.loads(cli("ls", run_folder.parent, "--json").stdout)] == [str(run_folder)]
    assert cli("ls", run_folder / "none").code == 4


def test_schema_names_every_option(cli: Any) -> None:
    """The schema has each option, the methods' arguments, and refuses other keys."""
    schema = json.loads(cli("schema").stdout)
    assert set(OPTIONS) - set(NEVER_FROM_FILE) | {"rank", "law"} <= set(schema["properties"])
    assert schema["additionalProperties"] is False and set(schema["required"]) == {"model", "output_dir"}
    assert json.loads(cli("schema", "--json").stdout) == schema


def test_init_then_train_reads_it(cli: Any, fakes: Any, tmp_path: Path) -> None:
    """The file that init writes is one that train takes."""
    file = tmp_path / "run.yaml"
    flags = ["--model", "m", "--train", "t.jsonl", "--label-words", "No,Yes", "--output-dir", tmp_path / "out"]
    assert json.loads(cli("init", file, *flags, "--json").stdout)["to_fill_in"] == []
    assert cli("train", "--config", file).code == 0
    (config, _), _ = next(call[1:] for call in fakes.calls if call[0] == "train")
    assert config.label_words == ["No", "Yes"] and config.output_dir == tmp_path / "out"
    again = cli("init", file, *flags)
    assert again.code == 2 and "is there already" in again.stderr


def test_doctor_says_what_to_change(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Findings, and remedies on lines of their own."""
    found = {"ok": False, "findings": [{"name": "disk", "value": "1 B free", "remedy": "free space."}]}
    monkeypatch.setattr("zotune.doctor.examine", lambda: found)
    outcome = cli("doctor")
    assert outcome.code == 0 and outcome.stderr == "disk  1 B free\ndisk: free space.\n"
    assert json.loads(cli("doctor", "--json").stdout) == found


@pytest.mark.parametrize("command", ["report", "export", "plan", "cat"])
def test_no_run_is_one_sentence(cli: Any, tmp_path: Path, command: str) -> None:
    """A folder that holds no run: exit code 4, one line with the remedy."""
    more = ["--to", tmp_path / "out"] if command == "export" else []
    outcome = cli(command, tmp_path / "none", *more)
    assert outcome.code == 4 and "Remedy" in outcome.stderr and outcome.stderr.count("\n") == 1


def test_export_takes_one_form(cli: Any, run_folder: Path, tmp_path: Path) -> None:
    """Two forms at once are refused."""
    outcome = cli("export", run_folder, "--to", tmp_path / "out", "--merge", "--delta")
    assert outcome.code == 2 and "--merge and --delta were given. Remedy: give one of them." in outcome.stderr


def test_cp_copies_a_run(cli: Any, run_folder: Path, tmp_path: Path) -> None:
    """The copy is a run with the same journal; without a run there is nothing to copy."""
    outcome = cli("cp", run_folder, tmp_path / "copy", "--no-snapshots", "--json")
    assert outcome.code == 0 and json.loads(outcome.stdout)["to"] == str(tmp_path / "copy")
    assert (tmp_path / "copy" / "journal.zoj").read_bytes() == (run_folder / "journal.zoj").read_bytes()
    assert cli("cp", tmp_path / "none", tmp_path / "other").code == 4


def test_push_takes_one_content(cli: Any, run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flags reach `push`; two contents are one too many."""
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr("zotune.push.push", lambda *given: calls.append(given) or {"url": "u"})
    assert json.loads(cli("push", run_folder, "me/x", "--journal", "--private", "--json").stdout) == {"url": "u"}
    (run, repo, _, content, private, to, trust) = calls[0]
    assert (run, repo, content, private, to, trust) == (run_folder, "me/x", "journal", True, None, False)
    outcome = cli("push", run_folder, "me/x", "--journal", "--merge")
    assert outcome.code == 2 and "--merge and --journal were given" in outcome.stderr
