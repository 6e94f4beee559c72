"""The rows of a run: files with their hash, tasks with the hash of their rows."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from zotune.config import TrainConfig
from zotune.data.source import load_source, read_part
from zotune.errors import DataError

CB = [{"premise": f"p{n}", "hypothesis": "h", "label": n % 3} for n in range(12)]


def config(**options: Any) -> TrainConfig:
    """A config with these options."""
    return TrainConfig(model="m", output_dir=Path("o"), **options)


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows as jsonl."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_file(tmp_path: Path) -> None:
    """Rows, the hash of the file's bytes, its name, and the shape."""
    path = lines(tmp_path / "a.jsonl", [{"text": "x"}])
    part = read_part(path, "train")
    assert part.rows == [{"text": "x"}] and part.name == str(path)
    assert part.sha256 == sha256(path.read_bytes()).hexdigest()
    source = load_source(config(train=path, eval=path))
    assert source.shape == "text" and source.train == source.eval == part
    assert source.says() == "text: all tokens of the text are scored"
    with pytest.raises(DataError, match="none.jsonl does not exist"):
        read_part(tmp_path / "none.jsonl", "train")


def test_an_unclear_shape_names_the_file(tmp_path: Path) -> None:
    """Which of the files is meant."""
    path = lines(tmp_path / "a.jsonl", [{"review": "x"}])
    with pytest.raises(DataError, match=r"a.jsonl: Row 1 has no column 'text'"):
        load_source(config(train=path))


def test_task(tmp_path: Path) -> None:
    """The hash is of the rows, whatever the file format; another sample has another hash."""
    lines(tmp_path / "train.jsonl", CB)
    lines(tmp_path / "dev.jsonl", CB[:5])
    one = load_source(config(task="cb", data_dir=tmp_path, train_rows=6))
    assert one.train is not None and one.eval is not None and one.shape == one.says() == ""
    assert (len(one.train.rows), len(one.eval.rows)) == (6, 5)
    (tmp_path / "train.jsonl").unlink()
    (tmp_path / "train.json").write_text(json.dumps(CB, indent=1))
    same = load_source(config(task="cb", data_dir=tmp_path, train_rows=6))
    assert same.train is not None and same.train.sha256 == one.train.sha256
    other = load_source(config(task="cb", data_dir=tmp_path, train_rows=6, data_seed=1))
    assert other.train is not None and other.train.sha256 != one.train.sha256


def test_own_rows_in_a_tasks_fields(tmp_path: Path) -> None:
    """--eval replaces the task's evaluation rows; without training no training rows are read."""
    lines(tmp_path / "dev.jsonl", CB[:5])
    mine = lines(tmp_path / "mine.jsonl", CB[:2])
    source = load_source(config(task="cb", data_dir=tmp_path, eval=mine), training=False)
    assert source.train is None and source.eval == read_part(mine, "train") and source.first.name == str(mine)


def test_rows_of_the_hub(hub: Any, tmp_path: Path) -> None:
    """Their hash is that of the same rows as a task's, their name says the split; a file of the name wins."""
    hub([{"text": "x"}])
    part = read_part(Path("org/name"), "validation")
    assert (part.rows, part.name) == ([{"text": "x"}], "org/name:validation")
    assert part.sha256 == sha256(b'{"text": "x"}\n').hexdigest()
    source = load_source(config(train=Path("org/name"), eval=Path("org/name")))
    assert source.train is not None and source.train.name == "org/name:train" and source.eval == part
