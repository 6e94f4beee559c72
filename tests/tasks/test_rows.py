"""Rows from a folder and from the hub, and the parts of them that a run uses."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tests.tasks.harness import LISTED, UTILS, lines, written

from zotune.errors import ConfigError, DataError, UserError
from zotune.tasks import find
from zotune.tasks.rows import Wanted, rows_of, split_file, typed


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


ORDER = [{"text": f"row {n}", "label": n % 2} for n in range(1200)]


def test_documents_of_the_harness_keep_their_order(tmp_path: Path) -> None:
    """All of them, or the first so many; the training sample is one of the seed as before."""
    lines(tmp_path / "train.jsonl", ORDER)
    lines(tmp_path / "validation.jsonl", ORDER)
    task = find(str(written(tmp_path, LISTED)))
    train, test = rows_of(task, Wanted(data_dir=tmp_path, train_rows=10))
    assert test == ORDER and len(train) == 10 and train != ORDER[:10]
    assert rows_of(task, Wanted(data_dir=tmp_path, eval_rows=7, training=False)) == ([], ORDER[:7])


def test_process_docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file's function gets a whole split as the package datasets has it, on every split; without it, a sentence."""
    (tmp_path / "utils.py").write_text(UTILS)
    for split in ("train", "validation"):
        lines(tmp_path / f"{split}.jsonl", [{"text": f"{split} {n}", "label": n % 3 - 1} for n in range(6)])
    task = find(str(written(tmp_path, LISTED + "process_docs: !function utils.docs\n")), allow_code=True)
    wanted = Wanted(data_dir=tmp_path, train_rows=2)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"process_docs works on the package datasets, which is not installed. Remedy"):
        rows_of(task, wanted)
    module = ModuleType("datasets")
    module.Dataset = Split  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    train, test = rows_of(task, wanted)
    assert [row["text"] for row in test] == ["VALIDATION 1", "VALIDATION 2", "VALIDATION 4", "VALIDATION 5"]
    assert all(row["text"].startswith("TRAIN") and row["label"] >= 0 for row in train)
    lines(tmp_path / "validation.jsonl", [{"text": "x", "label": -1}])
    with pytest.raises(DataError, match="process_docs leaves no row"):
        rows_of(task, wanted)


class Split(list[dict[str, Any]]):
    """As much of datasets.Dataset as the tests' function uses."""

    @staticmethod
    def from_list(rows: list[dict[str, Any]]) -> Split:
        """Rows as such a split."""
        return Split(rows)

    def filter(self, keep: Callable[[dict[str, Any]], bool]) -> Split:
        """Those that `keep` holds for."""
        return Split(row for row in self if keep(row))

    def map(self, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Split:
        """Each with what `change` gives."""
        return Split(row | change(row) for row in self)


def test_columns_of_numbers(tmp_path: Path) -> None:
    """A csv column that is numbers throughout is one for a task of the harness, to which a number is an index."""
    rows = [
        {"a": "1", "b": "-2", "c": "1.5", "d": "True", "e": "1", "f": "1_0", "g": "", "h": "x"},
        {"a": "03", "b": "+4", "c": "2e3", "d": "false", "e": "x", "f": "2", "g": "1", "h": "nan"},
    ]
    first, second = typed(rows)
    assert first == {"a": 1, "b": -2, "c": 1.5, "d": True, "e": "1", "f": "1_0", "g": "", "h": "x"}
    assert second == {"a": 3, "b": 4, "c": 2000.0, "d": False, "e": "x", "f": "2", "g": "1", "h": "nan"}
    (tmp_path / "validation.csv").write_text("text,label\nx,1\ny,0\n")
    lines(tmp_path / "train.jsonl", ORDER[:2])
    task = find(str(written(tmp_path, LISTED.replace('["bad", "good"]', '["1", "0"]'))))
    assert task.causal is not None
    test = rows_of(task, Wanted(data_dir=tmp_path, training=False))[1]
    assert [task.causal(row).right for row in test] == [(1,), (0,)]


def test_real_folders(shared_data: Path) -> None:
    """The real folders give the sizes of the papers: CB 150/56, RTE 1000/277, 16-shot TREC."""
    assert tuple(map(len, rows_of(find("cb"), Wanted(data_dir=shared_data / "cb")))) == (150, 56)
    assert tuple(map(len, rows_of(find("rte"), Wanted(data_dir=shared_data / "rte")))) == (1000, 277)
    assert tuple(map(len, rows_of(find("sst2"), Wanted(data_dir=shared_data / "sst2")))) == (1000, 872)
    train, test = rows_of(find("trec"), Wanted(data_dir=shared_data / "trec", shots=16, seed=42))
    assert (len(train), len(test)) == (96, 500)
