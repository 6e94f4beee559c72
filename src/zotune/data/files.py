"""Rows of a local file as a list of dicts. One format per suffix, UTF-8, errors with file and line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zotune.errors import DataError

Row = dict[str, Any]


def read_rows(path: str | Path) -> list[Row]:
    """All rows of `path`, in file order.

    `.jsonl`/`.ndjson`: one JSON object per line. `.json`: a list of objects, or lines as in `.jsonl`.
    `.csv`: RFC 4180 with a header line. `.tsv`: tabs with a header line, quotes are ordinary characters.
    Blank lines, CRLF and a byte order mark are accepted. Values of csv and tsv are strings.
    `.parquet`: one table, its values as Python ones; needs pyarrow.
    Raises DataError naming file and line: no such file, a folder, other suffix, not UTF-8, bad row, no rows, half a
    surrogate pair.
    """
    path = Path(path)
    if path.is_dir():
        raise DataError(f"{path} is a folder. Remedy: name a file in it; a folder of a task's files is --data-dir.")
    reader = _READERS.get(path.suffix.lower())
    if path.suffix.lower() == PARQUET:
        rows = _parquet(path, _bytes(path))
    elif reader is not None:
        rows = reader(path, _text(path))
    else:
        raise DataError(f"{path} has the unknown suffix {path.suffix!r}. Remedy: use {', '.join(SUFFIXES)}.")
    if not rows:
        raise DataError(f"{path} holds no rows. Remedy: give a file with at least one row.")
    return rows


def encodable(value: Any) -> bool:
    """Whether a JSON value is text and numbers that UTF-8 can hold: half a surrogate pair, an escape alone, is not."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _bytes(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited at
            raise DataError(f"{path} is not a plain file. Remedy: write its rows into one.")
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path} does not exist. Remedy: check the path.") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path} cannot be read: {reason}. Remedy: give a readable file.") from error


def _text(path: Path) -> str:
    """The whole file as text, without byte order mark, line ends left as they are."""
    raw = _bytes(path)
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path} is UTF-16. Remedy: save it as UTF-8.")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line}: not UTF-8 ({error.reason}). Remedy: save it as UTF-8.") from error


def _json_lines(path: Path, text: str) -> list[Row]:
    rows: list[Row] = []
    # Split on line feeds only: str.splitlines would also cut at U+2028 inside a JSON string.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}, line {number}: not JSON ({error.msg}, column {error.colno}). "
                "Remedy: write one JSON object per line."
            ) from error
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
            raise DataError(f"{path}, line {number}: cannot be read ({error}). Remedy: correct the line.") from None
        if not isinstance(row, dict):
            raise DataError(
                f"{path}, line {number}: a JSON {_json_kind(row)}, not an object. "
                'Remedy: write one object per line, like {"text": "..."}.'
            )
        if "\\u" in line:  # nothing else makes a surrogate of a file that is UTF-8
            _check_encodable(f"{path}, line {number}", row)
        rows.append(row)
    return rows


def _json(path: Path, text: str) -> list[Row]:
    if not text.lstrip().startswith("["):
        return _json_lines(path, text)
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {error.lineno}: not JSON ({error.msg}, column {error.colno}). Remedy: correct it."
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read ({error}). Remedy: correct it.") from None
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise DataError(
                f"{path}, item {number}: a JSON {_json_kind(row)}, not an object. "
                'Remedy: write a list of objects, like [{"text": "..."}].'
            )
        if "\\u" in text:
            _check_encodable(f"{path}, item {number}", row)
    return list(rows)


def _check_encodable(place: str, row: Row) -> None:
    """Raises DataError for text that no tokenizer takes."""
    bad = next((name for name, value in row.items() if not encodable([name, value])), None)
    if bad is not None:
        raise DataError(
            f"{place}: column {bad!r} holds half a surrogate pair (\\ud800 to \\udfff alone), which is no text. "
            "Remedy: correct it."
        )


def _csv(path: Path, text: str) -> list[Row]:
    # strict: a stray quote is an error instead of a row that swallows the rest of the file.
    return _table(path, csv.reader(io.StringIO(text, newline=""), strict=True))


def _tsv(path: Path, text: str) -> list[Row]:
    lines = io.StringIO(text, newline="")
    return _table(path, csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))


def _table(path: Path, reader: Any) -> list[Row]:
    """Rows under a header line. `reader` is a csv reader."""
    rows: list[Row] = []
    header: list[str] | None = None
    try:
        for fields in reader:
            if not fields or fields == [""]:
                continue
            if header is None:
                header = _header(path, reader.line_num, fields)
            elif len(fields) != len(header):
                raise DataError(
                    f"{path}, line {reader.line_num}: {len(fields)} fields, but the header has {len(header)} "
                    f"({', '.join(header)}). Remedy: correct or quote the line."
                )
            else:
                rows.append(dict(zip(header, fields, strict=True)))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}. Remedy: correct or quote the line.") from error
    return rows


def _header(path: Path, line: int, names: list[str]) -> list[str]:
    names = [name.strip() for name in names]
    if "" in names or len(set(names)) != len(names):
        raise DataError(
            f"{path}, line {line}: the header {names} has an empty or repeated column name. "
            "Remedy: give every column its own name."
        )
    return names


def _parquet(path: Path, data: bytes) -> list[Row]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise DataError(
            f"{path} is a parquet file, and pyarrow is not installed. Remedy: pip install 'zotune[data]', or convert "
            "the file to jsonl."
        ) from None
    try:
        rows: list[Row] = parquet.read_table(pyarrow.BufferReader(data)).to_pylist()
    except UnicodeDecodeError as error:  # its texts are bytes that nothing has checked
        raise DataError(f"{path} holds text that is not UTF-8 ({error.reason}). Remedy: write it as UTF-8.") from error
    except (pyarrow.ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path} is no parquet file: {reason} Remedy: give a parquet file.") from error
    return rows


def _json_kind(value: Any) -> str:
    if isinstance(value, list):
        return "list"
    if isinstance(value, str):
        return "string"
    return "null" if value is None else "number or boolean"


_READERS: dict[str, Callable[[Path, str], list[Row]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _tsv,
}
PARQUET = ".parquet"
# In the order in which a folder is searched for a split.
SUFFIXES: tuple[str, ...] = (*_READERS, PARQUET)
