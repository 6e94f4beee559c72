"""Rows from a folder and from the hub, and the parts of them that a run uses."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest

from zotune.errors import ConfigError, DataError, UserError
from zotune.tasks import find
from zotune.tasks.rows import Wanted, rows_of, split_file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """CB in a folder: 30 training rows, 9 dev rows."""
    for name, count in (("train", 30), ("dev", 9)):
        rows = [{"premise": f"{name} {n}", "hypothesis": "h", "label": n % 3} for n in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_parts(folder: Path) -> None:
    """Dev rows come from the training split, test rows from the official validation split."""
    task = find("cb")
    train, test = rows_of(task, Wanted(data_dir=folder, train_rows=10, eval_rows=5))
    assert (len(train), len(test)) == (10, 5)
    assert all(row["premise"].startswith("train") for row in train)
    assert all(row["premise"].startswith("dev") for row in test)
    same, dev = rows_of(task, Wanted(data_dir=folder, train_rows=10, eval_rows=5, part="dev"))
    assert same == train and len(dev) == 5 and all(row["premise"].startswith("train") for row in dev)
    assert not [row for row in dev if row in train]


def test_without_training(folder: Path) -> None:
    """A zero-shot evaluation needs no training split."""
    (folder / "train.jsonl").unlink()
    train, test = rows_of(find("cb"), Wanted(data_dir=folder, training=False))
    assert train == [] and len(test) == 9


def test_shots(folder: Path) -> None:
    """k rows of each class; the test rows do not depend on the data seed then."""
    train, test = rows_of(find("cb"), Wanted(data_dir=folder, shots=3, seed=13))
    assert sorted(row["label"] for row in train) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert test == rows_of(find("cb"), Wanted(data_dir=folder, shots=3, seed=21))[1]
    with pytest.raises(ConfigError, match="task squad has no classes, so no --shots"):
        (folder / "train.json").write_text((folder / "train.jsonl").read_text())
        (folder / "train.jsonl").unlink()
        rows_of(find("squad"), Wanted(data_dir=folder, shots=3))


def test_unlabelled_rows_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """SNLI marks pairs without agreement by -1: they are dropped, and the count is said."""
    row = {"premise": "p", "hypothesis": "h"}
    lines = [json.dumps({**row, "label": label}) for label in (0, -1, 2, "-")]
    (tmp_path / "validation.jsonl").write_text("\n".join(lines))
    with caplog.at_level(logging.INFO, logger="zotune"):
        _, test = rows_of(find("snli"), Wanted(data_dir=tmp_path, training=False))
    assert sorted(row["label"] for row in test) == [0, 2] and "2 of 4 rows of the validation split" in caplog.text
    (tmp_path / "validation.jsonl").write_text(lines[1])
    with pytest.raises(DataError, match="no row of task snli's validation split has a label"):
        rows_of(find("snli"), Wanted(data_dir=tmp_path, training=False))


@pytest.mark.parametrize(
    ("split", "names", "expected"),
    [
        ("train", ["train.csv"], "train.csv"),
        ("validation", ["dev.jsonl", "test.jsonl"], "dev.jsonl"),
        ("validation", ["validation.parquet", "dev.csv"], "validation.parquet"),
        ("validation_matched", ["dev_matched.tsv", "dev.tsv"], "dev_matched.tsv"),
        ("validation_matched", ["val.json"], "val.json"),
        ("test", ["test.jsonl", "dev.jsonl"], "test.jsonl"),
    ],
)
def test_split_file(tmp_path: Path, split: str, names: list[str], expected: str) -> None:
    """A split is found under its usual names, in any format."""
    for name in names:
        (tmp_path / name).touch()
    assert split_file(tmp_path, split).name == expected


def test_split_file_errors(tmp_path: Path) -> None:
    """No folder, no file of the split, two files of it."""
    with pytest.raises(DataError, match="none is not a folder. Remedy: give --data-dir"):
        split_file(tmp_path / "none", "train")
    (tmp_path / "test.csv").touch()
    with pytest.raises(DataError, match="no file of the train split; data files found: test.csv"):
        split_file(tmp_path, "train")
    (tmp_path / "train.csv").touch()
    (tmp_path / "train.jsonl").touch()
    with pytest.raises(DataError, match="several files of the train split: train.jsonl, train.csv"):
        split_file(tmp_path, "train")


def test_hub(hub: Any) -> None:
    """The hub id, the subset and the official split are what is asked for."""
    rows = [{"premise": "p", "hypothesis": "h", "label": 0}] * 4
    calls = hub(rows)
    train, test = rows_of(find("mnli"), Wanted())
    assert calls == [("nyu-mll/glue", "mnli", "train", None), ("nyu-mll/glue", "mnli", "validation_matched", None)]
    assert len(train) == 2 and len(test) == 4


def test_hub_errors(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, and without the package: one sentence with the remedy."""
    hub(ConnectionError("no network\nand more"))
    with pytest.raises(
        UserError,
        match="mnli: the data set nyu-mll/glue cannot be loaded .*: no network. Remedy: .*--data-dir",
    ):
        rows_of(find("mnli"), Wanted())
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"datasets is not installed. Remedy: pip install 'zotune\[data\]'"):
        rows_of(find("mnli"), Wanted())


def test_real_folders(shared_data: Path) -> None:
    """The real folders give the sizes of the papers: CB 150/56, RTE 1000/277, 16-shot TREC."""
    assert tuple(map(len, rows_of(find("cb"), Wanted(data_dir=shared_data / "cb")))) == (150, 56)
    assert tuple(map(len, rows_of(find("rte"), Wanted(data_dir=shared_data / "rte")))) == (1000, 277)
    assert tuple(map(len, rows_of(find("sst2"), Wanted(data_dir=shared_data / "sst2")))) == (1000, 872)
    train, test = rows_of(find("trec"), Wanted(data_dir=shared_data / "trec", shots=16, seed=42))
    assert (len(train), len(test)) == (96, 500)
