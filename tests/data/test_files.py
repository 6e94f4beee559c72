"""read_rows: every format gives the same rows, and errors name file and line."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from zotune.data.files import read_rows
from zotune.errors import DataError

ROWS = [{"text": 'caffè, "quoted"', "label": "1"}, {"text": "two\u2028parts", "label": "0"}]
FILES = {
    "rows.jsonl": '{"text": "caffè, \\"quoted\\"", "label": "1"}\n{"text": "two\u2028parts", "label": "0"}\n',
    "rows.json": '[{"text": "caffè, \\"quoted\\"", "label": "1"},\n{"text": "two\u2028parts", "label": "0"}]',
    "rows.csv": 'text,label\n"caffè, ""quoted""",1\ntwo\u2028parts,0\n',
    "rows.tsv": 'text\tlabel\ncaffè, "quoted"\t1\ntwo\u2028parts\t0\n',
}


def write(folder: Path, name: str, content: str | bytes) -> Path:
    """A file with exactly these bytes."""
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("crlf", [False, True])
@pytest.mark.parametrize("bom", [False, True])
@pytest.mark.parametrize("blank", [False, True])
def test_formats_agree(tmp_path: Path, name: str, crlf: bool, bom: bool, blank: bool) -> None:
    """Line ends, a byte order mark and blank lines change nothing; a line separator inside text is text."""
    content = FILES[name]
    if blank and name != "rows.json":
        content = "\n" + content.replace("\n", "\n\n") + "\n\n"
    if crlf:
        content = content.replace("\n", "\r\n")
    assert read_rows(write(tmp_path, name, "\ufeff" * bom + content)) == ROWS


def test_json_may_hold_lines(tmp_path: Path) -> None:
    """A .json file of one object per line is read as such, and types are kept."""
    assert read_rows(write(tmp_path, "a.json", '{"a": 1}\n{"a": null}\n')) == [{"a": 1}, {"a": None}]


def test_a_whole_surrogate_pair_is_a_letter(tmp_path: Path) -> None:
    """As are its six characters where the backslash is one of the text."""
    content = '{"a": "\\ud83d\\ude00", "b": "\\\\ud800"}'
    for name, text in (("a.jsonl", content), ("a.json", f"[{content}]")):
        assert read_rows(write(tmp_path, name, text)) == [{"a": "\U0001f600", "b": "\\ud800"}]


def test_csv_field_over_two_lines(tmp_path: Path) -> None:
    """A quoted field may contain a line end."""
    assert read_rows(write(tmp_path, "a.csv", 'a,b\n"x\ny",2\n')) == [{"a": "x\ny", "b": "2"}]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", '{"a": 1}\n\n{"a": \n', "line 3: not JSON"),
        ("a.jsonl", '{"a": 1}\n[2]\n', "line 2: a JSON list"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', "line 2: not UTF-8"),
        ("a.jsonl", b"\xff\xfe{\x00}\x00", "UTF-16"),
        ("a.jsonl", "\n \n", "no rows"),
        ("a.json", '[{"a": 1},\n{"a": }]', "line 2: not JSON"),
        ("a.json", '[{"a": 1}, "b"]', "item 2: a JSON string"),
        ("a.jsonl", '{"a": 1}\n\n{"b": 2, "a": "x \\ud800 y"}\n', "line 3: column 'a' holds half a surrogate pair"),
        ("a.jsonl", '{"a": [{"b": "\\uDfFf\\ud83d"}]}\n', "line 1: column 'a' holds half a surrogate pair"),
        ("a.jsonl", '{"\\ud800": 1}\n', r"line 1: column '\ud800' holds half a surrogate pair"),
        ("a.json", '[{"a": 1}, {"a": "\\udc00"}]', "item 2: column 'a' holds half a surrogate pair"),
        ("a.json", '{"a": "\\udc00"}', "line 1: column 'a' holds half a surrogate pair"),
        ("a.csv", b"a,b\n1,\xed\xa0\x80\n", "line 2: not UTF-8"),
        ("a.csv", "a,b\n1,2\n3\n", "line 3: 1 fields"),
        ("a.csv", 'a,b\n1,"2\n3,4\n', "line 3"),
        ("a.csv", "a,a\n1,2\n", "line 1: the header"),
        ("a.csv", "a,b\n", "no rows"),
        ("a.tsv", "a\tb\n1\t2\t3\n", "line 2: 3 fields"),
        ("a.xlsx", "x", "unknown suffix"),
    ],
)
def test_errors_name_file_and_line(tmp_path: Path, name: str, content: str | bytes, says: str) -> None:
    """Each fault is one DataError with the path, the place and a remedy."""
    path = write(tmp_path, name, content)
    with pytest.raises(DataError) as caught:
        read_rows(path)
    message = str(caught.value)
    assert says in message and str(path) in message and "Remedy: " in message


def test_no_file(tmp_path: Path) -> None:
    """A missing path and a folder are told apart from an empty file."""
    with pytest.raises(DataError, match="does not exist"):
        read_rows(tmp_path / "none.jsonl")
    folder = tmp_path / "folder.jsonl"
    folder.mkdir()
    with pytest.raises(DataError, match="folder.jsonl is a folder. Remedy: name a file in it"):
        read_rows(folder)


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what to install, or what to do without."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    path = write(tmp_path, "a.parquet", "PAR1")
    with pytest.raises(DataError, match=r"pyarrow is not installed. Remedy: pip install 'zotune\[data\]', or convert"):
        read_rows(path)
    with pytest.raises(DataError, match="does not exist"):
        read_rows(tmp_path / "none.parquet")


def test_parquet(tmp_path: Path) -> None:
    """Values keep their types; a file that is no parquet and one without rows are named."""
    pyarrow = pytest.importorskip("pyarrow", reason="parquet needs pyarrow (the extra data)")
    from pyarrow import parquet

    rows = [{"text": "caffè\u2028", "label": 1, "list": ["a"]}, {"text": "x", "label": None, "list": []}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert read_rows(tmp_path / "a.parquet") == rows
    with pytest.raises(DataError, match="b.parquet is no parquet file: .* Remedy: give a parquet file"):
        read_rows(write(tmp_path, "b.parquet", "text,label"))
    half = [None, *map(pyarrow.py_buffer, (bytes((0, 0, 0, 0, 3, 0, 0, 0)), b"\xed\xa0\x80"))]  # the text from 0 to 3
    column = pyarrow.Array.from_buffers(pyarrow.string(), 1, half)
    parquet.write_table(pyarrow.table({"text": column}), tmp_path / "d.parquet")
    with pytest.raises(DataError, match=r"d.parquet holds text that is not UTF-8 \(.*\). Remedy: write it as UTF-8"):
        read_rows(tmp_path / "d.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(rows).slice(0, 0), tmp_path / "c.parquet")
    with pytest.raises(DataError, match="c.parquet holds no rows"):
        read_rows(tmp_path / "c.parquet")


def test_a_pipe_is_not_waited_at(tmp_path: Path) -> None:
    """It could keep a run for ever, and could not be read again by its continuation."""
    os.mkfifo(tmp_path / "rows.jsonl")
    with pytest.raises(DataError, match="rows.jsonl is not a plain file. Remedy"):
        read_rows(tmp_path / "rows.jsonl")
