"""Arbitrary bytes and values in place of a journal, a config, rows or a template: the documented error, or a result.

Never another exception, a hang, or memory without bound. The slow ones are the same with many more examples.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.hostile import ROWS, TEMPLATE_ROW, YAMLS, bounded_memory
from tests.models import tiny, train

from zotune.config import NEVER_FROM_FILE, OPTIONS, TrainConfig
from zotune.data.files import read_rows
from zotune.data.sandbox import MAX_SIZE
from zotune.data.template import Template
from zotune.errors import ConfigError, DataError, JournalError, UserError
from zotune.journal import HashRecord, Journal, StepRecord, read
from zotune.rebuild import apply, rebuild
from zotune.resolve import resolve
from zotune.yaml12 import parse_mapping

TAKEN, REFUSED = "taken", "refused with the documented error"
BOTH = {TAKEN, REFUSED}
Check = Callable[[Any], str]


def outcomes(count: int, check: Check) -> set[str]:
    """What became of `count` examples, a fixed sequence, each within 20 s on a loaded machine and in bounded memory.

    Another exception than the documented one, which must name a remedy, leaves `check` and fails the test.
    """
    found: set[str] = set()
    settled = settings(
        max_examples=count,
        deadline=20_000,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    with bounded_memory():
        settled(given(st.data())(lambda data: found.add(check(data))))()
    return found


def refused(error: UserError) -> str:
    assert "Remedy: " in str(error)
    return REFUSED


# --- journal ---------------------------------------------------------------------------------------------------------

RECORD = st.one_of(
    st.builds(
        StepRecord,
        st.integers(0, 40),
        st.lists(st.floats(), max_size=3).map(tuple),
        st.lists(st.floats(), max_size=5).map(tuple),
    ),
    st.builds(HashRecord, st.integers(0, 2**32 - 1), st.binary(min_size=32, max_size=32).map(bytes.hex)),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)


def whole(header: bytes, rest: bytes) -> bytes:
    """A file whose header is whole."""
    return b"ZOJ1\n" + struct.pack("<I", len(header)) + header + struct.pack("<I", zlib.crc32(header)) + rest


def check_journal(path: Path, data: bytes) -> str:
    """Reading, and opening to append, end in records or in JournalError; an error leaves the bytes alone."""
    path.write_bytes(data)
    try:
        header, records, torn = read(path)
    except JournalError as error:
        with pytest.raises(JournalError):
            Journal.append_to(path)
        assert path.read_bytes() == data
        return refused(error)
    assert isinstance(header, dict) and 0 <= torn <= len(data)
    Journal.append_to(path).close()
    assert path.read_bytes() == data[: len(data) - torn]
    assert repr(read(path)) == repr((header, records, 0))
    return TAKEN


def any_bytes(data: Any, path: Path) -> bytes:
    content: bytes = data.draw(st.binary(max_size=300))
    return content


def any_tail(data: Any, path: Path) -> bytes:
    return whole(b"{}", data.draw(st.binary(max_size=300)))


def any_header(data: Any, path: Path) -> bytes:
    text = json.dumps(data.draw(JSON)).encode() if data.draw(st.booleans()) else data.draw(st.binary(max_size=60))
    return whole(text, b"")


def changed(data: Any, path: Path) -> bytes:
    """A whole journal with a few bytes changed, cut or added."""
    path.unlink(missing_ok=True)
    with Journal.create(path, {"a": 1}) as journal:
        last = -1
        for record in data.draw(st.lists(RECORD, max_size=6)):
            if isinstance(record, HashRecord) or record.step > last:
                last = record.step if isinstance(record, StepRecord) else last
                journal.append(record)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
        content = content or bytearray(b"Z")
    return bytes(content)


# Bytes that no one wrote are never a journal; behind a whole header they are a record that did not arrive.
JOURNALS = [(any_bytes, {REFUSED}), (any_tail, {TAKEN}), (any_header, BOTH), (changed, BOTH)]


@pytest.mark.parametrize(("make", "ends"), JOURNALS)
def test_journal(tmp_path: Path, make: Callable[[Any, Path], bytes], ends: set[str]) -> None:
    """Any bytes: records, a torn tail that is cut, or JournalError."""
    path = tmp_path / "j.zoj"
    assert outcomes(60, lambda data: check_journal(path, make(data, path))) == ends


@pytest.mark.slow
@pytest.mark.parametrize(("make", "ends"), JOURNALS)
def test_journal_long(tmp_path: Path, make: Callable[[Any, Path], bytes], ends: set[str]) -> None:
    """The same, 3,000 times."""
    path = tmp_path / "j.zoj"
    assert outcomes(3000, lambda data: check_journal(path, make(data, path))) == ends


ODD = st.sampled_from(
    [10**9, 2**63, -1, 10**30, "x", "../x", "a\0b", None, [], {}, True, 1e300, float("nan"), [[]], [{}]]
)


def whole_header(method: str) -> dict[str, Any]:
    """The header of a run of two losses a step, with what `zotune train` adds to it."""
    added = {key: "0" * 64 for key in ("base_sha256", "train_sha256")} | {"zotune": "0.1", "torch": "2.13"}
    rest = {"config": {"steps": 7}, "functions": {"own.py:f": "0" * 64}, "branch": {"step": 1}}
    return train(method, tiny("llama", torch.float32)).header() | added | rest


def headers(base: dict[str, Any], data: Any) -> str:
    """One value of a real header, at any depth, is another; what it asks for is done, or refused by name."""
    header = json.loads(json.dumps(base))
    place, key = header, data.draw(st.sampled_from(sorted(header)))
    while isinstance(place.get(key) if isinstance(place, dict) else place[key], dict | list) and data.draw(
        st.booleans()
    ):
        inner = place[key]
        if not inner:
            break
        place = inner
        key = data.draw(st.sampled_from(sorted(inner) if isinstance(inner, dict) else range(len(inner))))
    place[key] = data.draw(ODD | JSON | st.sampled_from(["0" * 64, "cycle", 1, 0.5, {"a": "b"}]))
    step = StepRecord(0, data.draw(LRS), data.draw(LOSSES))
    try:
        found = apply(rebuild(header, tiny("llama", torch.float32)), [step])
    except UserError as error:
        return refused(error)
    assert found["steps"] == 1
    return TAKEN


# Half of them fit the runs below: one group, two points or three.
LRS = st.just((0.5,)) | st.lists(st.floats(0, 1), max_size=2).map(tuple)
LOSSES = st.sampled_from([(1.0, 2.0), (1.0, 2.0, 1.5)]) | st.lists(st.floats(), max_size=5).map(tuple)


@pytest.mark.parametrize("method", ["mezo", "lozo", "sparse_mezo", "hizoo", "meazo"])
def test_header(method: str) -> None:
    """A header from anywhere never makes a replay crash or allocate: it is refused, or it is another run."""
    base = whole_header(method)
    assert outcomes(120, lambda data: headers(base, data)) == BOTH


@pytest.mark.slow
@pytest.mark.parametrize("method", ["mezo", "lozo", "sparse_mezo", "hizoo", "meazo"])
def test_header_long(method: str) -> None:
    """The same, 1,500 times."""
    base = whole_header(method)
    assert outcomes(1500, lambda data: headers(base, data)) == BOTH


# --- config ----------------------------------------------------------------------------------------------------------

YAML = st.text(alphabet="ab:- \n[]{}&*!|>'\"#%@,?~\t01.eE<=\0é", max_size=60)


TEXT = YAML | st.binary(max_size=40) | st.text(max_size=40).map(lambda t: t.encode("utf-8", "surrogatepass"))


def yamls(data: Any) -> str:
    """Text as YAML."""
    try:
        values, lines = parse_mapping(data.draw(TEXT), "c.yaml")
    except ConfigError as error:
        return refused(error)
    assert set(values) == set(lines)
    return TAKEN


def configs(data: Any) -> str:
    """Any value for any option."""
    name = data.draw(st.sampled_from(OPTIONS))
    given = {"model": "m", "train": "t.jsonl", "output_dir": "o", name: data.draw(JSON | ODD)}
    try:
        found = resolve(given, arguments_of=lambda method: {"law"})
    except ConfigError as error:
        return refused(error)
    assert isinstance(found.absolute(), TrainConfig)
    if name not in NEVER_FROM_FILE:
        assert repr(TrainConfig(**parse_mapping(found.to_yaml(), "c")[0])) == repr(found)
    return TAKEN


@pytest.mark.parametrize("check", [yamls, configs])
def test_config(check: Check) -> None:
    """Any text and any value: a config that reads back the same, or ConfigError."""
    assert outcomes(150, check) == BOTH


@pytest.mark.slow
@pytest.mark.parametrize("check", [yamls, configs])
def test_config_long(check: Check) -> None:
    """The same, 5,000 times."""
    assert outcomes(5000, check) == BOTH


@pytest.mark.parametrize("text", YAMLS, ids=lambda text: text[:12])
def test_hostile_yaml(text: str) -> None:
    """Aliases that multiply, depth, digits and tags: ConfigError, at once."""
    with bounded_memory(), pytest.raises(ConfigError, match="Remedy"):
        parse_mapping(text, "c.yaml")


# --- rows ------------------------------------------------------------------------------------------------------------


def rows(folder: Path, data: Any) -> str:
    """A file of any content with any suffix."""
    path = folder / ("rows" + data.draw(st.sampled_from([".jsonl", ".json", ".csv", ".tsv", ".xml"])))
    content = data.draw(
        st.binary(max_size=80)
        | st.text(alphabet='a,"\t\n\r\\{}[]:0é\0', max_size=60).map(str.encode)
        | st.lists(JSON, max_size=3).map(lambda items: "\n".join(map(json.dumps, items)).encode())
        | JSON.map(lambda item: json.dumps(item).encode())
    )
    path.write_bytes(content)
    try:
        found = read_rows(path)
    except DataError as error:
        assert path.name in str(error)
        return refused(error)
    assert found and all(isinstance(row, dict) for row in found)
    return TAKEN


def test_rows(tmp_path: Path) -> None:
    """Any file: rows, or DataError with its name."""
    assert outcomes(200, lambda data: rows(tmp_path, data)) == BOTH


@pytest.mark.slow
def test_rows_long(tmp_path: Path) -> None:
    """The same, 10,000 times."""
    assert outcomes(10_000, lambda data: rows(tmp_path, data)) == BOTH


@pytest.mark.parametrize(("name", "content"), ROWS)
def test_hostile_rows(tmp_path: Path, name: str, content: bytes) -> None:
    """Depth, digits, an open quote: DataError."""
    (tmp_path / name).write_bytes(content)
    with bounded_memory(), pytest.raises(DataError, match="Remedy"):
        read_rows(tmp_path / name)


def test_name_that_is_no_name() -> None:
    """A NUL in a path is an error like any other."""
    with pytest.raises(DataError, match="cannot be read"):
        read_rows("a\0.jsonl")
    with pytest.raises(ConfigError, match="holds a character that is no text"):
        TrainConfig(model="m", train="a\0b", output_dir="o")  # type: ignore[arg-type]


# --- templates -------------------------------------------------------------------------------------------------------

WORDS = (
    "{{ }} {% %} text items n if else elif endif for endfor in set endset = == ( ) [ ] . , | ~ + - * ** % // / 'a' 0 9 "
    "99999999 upper join replace trim round map('upper') tojson list first is defined not and or loop.index self raw "
    "macro endmacro call range lipsum {# #} none true strip() split() __class__ format center(9999999) \n \0"
).split(" ")


def templates(data: Any) -> str:
    """Words of the language in any order, or any text."""
    words = st.lists(st.sampled_from(WORDS), max_size=14)
    source = data.draw(
        words.map(" ".join)
        | words.map(lambda w: "{{ " + " ".join(w) + " }}")
        | words.map(lambda w: "{% for a in items %}{{ " + " ".join(w) + " }}{% endfor %}")
        | st.text(max_size=40)
    )
    try:
        template = Template(source)
        text = template.render(TEMPLATE_ROW)
    except DataError as error:
        return refused(error)
    assert isinstance(text, str) and len(text) <= MAX_SIZE and template.render(TEMPLATE_ROW) == text
    return TAKEN


def test_template() -> None:
    """Any template: the same text each time, or DataError."""
    assert outcomes(200, templates) == BOTH


@pytest.mark.slow
def test_template_long() -> None:
    """The same, 10,000 times."""
    assert outcomes(10_000, templates) == BOTH
