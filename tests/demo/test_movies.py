"""Reading rated sentences and splitting them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from zotune.demo import movies
from zotune.errors import UserError


def _rows(count: int) -> list[movies.Row]:
    return [{"text": f"Sentence {number}.", "label": number % 3 % 2} for number in range(count)]


def _read(path: Path) -> list[movies.Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dev and test of 6 and 10 rows."""
    monkeypatch.setattr(movies, "DEV_ROWS", 6)
    monkeypatch.setattr(movies, "TEST_ROWS", 10)


def test_ratings_become_labels() -> None:
    """Neutral rows are dropped, 0.5 is not neutral, the sign is the label, the text is cleaned."""
    data = "1\t2.2\tA  ''fine'' film &amp; more.\r\n2\t-0.5\tCliché.\r\n3\t0.49\tHm.\r\n\r\n4\t0.5\tOk."
    assert movies.read_ratings(data.encode()) == [
        {"text": 'A "fine" film & more.', "label": 1},
        {"text": "Cliché.", "label": 0},
        {"text": "Ok.", "label": 1},
    ]


def test_split_sizes_balance_and_nothing_shared(small: None, tmp_path: Path) -> None:
    """Dev and test are half positive, repeats in another spelling are dropped, no text is in two files."""
    rows = _rows(60)
    said: list[str] = []
    movies.write_splits([*rows, {"text": "  sentence 7 ", "label": 1}], tmp_path, said.append)
    parts = {name: _read(tmp_path / f"{name}.jsonl") for name in ("train", "dev", "test")}
    assert {name: len(part) for name, part in parts.items()} == {"train": 44, "dev": 6, "test": 10}
    assert [sum(row["label"] for row in parts[name]) for name in ("dev", "test")] == [3, 5]
    texts = [row["text"] for part in parts.values() for row in part]
    assert sorted(texts) == sorted(row["text"] for row in rows)
    assert "1 repeats left out" in said[-1]


def test_split_depends_on_the_texts_only(small: None, tmp_path: Path) -> None:
    """The rows' order in the source changes no byte."""
    for name, rows in (("a", _rows(60)), ("b", _rows(60)[::-1])):
        (tmp_path / name).mkdir()
        movies.write_splits(rows, tmp_path / name, lambda text: None)
    for name in ("train", "dev", "test"):
        a, b = ((tmp_path / side / f"{name}.jsonl").read_bytes() for side in "ab")
        assert a == b


def test_hub_files_are_pooled(small: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every parquet file of the hub's set is read and the rows are split anew."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for name, rows in (("train", _rows(60)[:40]), ("data/test", _rows(60)[40:])):
        (tmp_path / "hub" / name).parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "hub" / f"{name}.parquet")
    monkeypatch.setattr(movies, "snapshot", lambda *_: tmp_path / "hub")
    movies.from_hub(tmp_path, lambda text: None)
    assert [len(_read(tmp_path / f"{name}.jsonl")) for name in ("train", "dev", "test")] == [44, 6, 10]


def test_too_few_rows_are_an_error(small: None, tmp_path: Path) -> None:
    """A class that cannot fill dev and test is refused."""
    with pytest.raises(UserError, match="too few"):
        movies.write_splits(_rows(15), tmp_path, lambda text: None)
