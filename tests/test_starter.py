"""`zotune init`: the file is a config."""

from __future__ import annotations

from pathlib import Path

import pytest

from zotune.config import NEVER_FROM_FILE, OPTIONS, TrainConfig
from zotune.errors import ConfigError
from zotune.presets import with_preset
from zotune.resolve import resolve
from zotune.starter import starter, write_starter


def test_file_is_accepted_and_complete(tmp_path: Path) -> None:
    """It resolves to the defaults, and names every option that a file may set."""
    path = tmp_path / "run.yaml"
    found = write_starter(path, {"model": "m", "train": "t.jsonl", "label_words": ["No", "Yes"], "lr": "1e-6"})
    assert found == {"config": str(path), "to_fill_in": []}
    expected = TrainConfig(
        model="m", train=Path("t.jsonl"), output_dir=Path("runs/first"), label_words=["No", "Yes"], lr=1e-6
    )
    assert resolve({}, path) == expected
    assert "\n# eps: 0.001\n" in path.read_text()
    write_starter(path, {"scope": "lora", "method": "fzoo"}, force=True)
    assert "\n# lr: 0.004\n" in path.read_text() and "\n# eps: 0.01\n" in path.read_text()  # its presets
    lines = path.read_text().splitlines()
    named = {line.removeprefix("# ").split(":")[0] for line in lines if not line.startswith("##")}
    assert set(OPTIONS) - set(NEVER_FROM_FILE) <= named and not named & set(NEVER_FROM_FILE)


def test_defaults_in_comments_are_the_defaults() -> None:
    """Without the comment signs the file means the same."""
    text = starter({"model": "m", "train": "t"}, "run.yaml").replace("\n# ", "\n")
    text = "\n".join(line for line in text.splitlines() if not line.startswith(("# ", "`zotune")))
    from zotune.yaml12 import parse_mapping

    values = parse_mapping(text, "x")[0]
    defaults = with_preset(TrainConfig(model="m", train=Path("t"), output_dir=Path("runs/first"))).as_dict()
    assert values == {name: value for name, value in defaults.items() if name not in NEVER_FROM_FILE}


def test_a_task_needs_no_rows_of_files(tmp_path: Path) -> None:
    """Where a task is given no file of rows stands beside it, and none is asked for."""
    path = tmp_path / "run.yaml"
    assert write_starter(path, {"task": "sst2", "steps": "30"})["to_fill_in"] == ["model"]
    config = resolve({}, path)
    assert (config.task, config.train, config.steps) == ("sst2", None, 30)
    assert "\nsteps: 30\n" in path.read_text()


@pytest.mark.parametrize(
    ("values", "said"),
    [({"steps": "many"}, "steps is 'many'"), ({"task": "sst2", "train": "t.jsonl"}, "cannot be used together")],
)
def test_what_no_run_could_have_is_not_written(tmp_path: Path, values: dict[str, str], said: str) -> None:
    """It is refused before there is a file."""
    with pytest.raises(ConfigError, match=said):
        write_starter(tmp_path / "run.yaml", values)
    assert not (tmp_path / "run.yaml").exists()


def test_file_is_not_replaced(tmp_path: Path) -> None:
    """An existing file stays without force; a folder that is not there is an error."""
    (tmp_path / "run.yaml").write_text("mine")
    with pytest.raises(ConfigError, match=r"is there already. Remedy: another name, or --force"):
        write_starter(tmp_path / "run.yaml", {})
    assert write_starter(tmp_path / "run.yaml", {}, force=True)["to_fill_in"] == ["model", "train"]
    with pytest.raises(ConfigError, match="cannot be written"):
        write_starter(tmp_path / "no" / "run.yaml", {})
