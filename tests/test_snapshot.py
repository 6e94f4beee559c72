"""Snapshots: exact tensors, a marker written last, rotation that never takes the only good one."""

from __future__ import annotations

import json
import logging
import os
import resource
from pathlib import Path

import pytest
import torch

from zotune import snapshot
from zotune.errors import RunError


def tensors(value: float) -> dict[str, torch.Tensor]:
    """Some tensors that are told apart by `value`."""
    return {"w": torch.full((3, 2), value), "b": torch.tensor([value], dtype=torch.bfloat16)}


def names(folder: Path) -> list[str]:
    """What lies in a folder, sorted."""
    return sorted(path.name for path in folder.iterdir())


def test_round_trip_is_exact(tmp_path: Path) -> None:
    """Bits, dtypes and shapes come back, of views, shared, scalar and empty tensors too."""
    base = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    given = {
        "float32": base,
        "shared": base,
        "transposed": base.t(),
        "bfloat16": base.to(torch.bfloat16),
        "float16": base.to(torch.float16),
        "nan": torch.tensor([float("nan"), -0.0]),
        "scalar": torch.tensor(3, dtype=torch.int64),
        "empty": torch.zeros(0, 5),
        "trained": torch.nn.Parameter(base[1]),
    }
    snapshot.save(tmp_path / "snapshots", 5, given, {"note": "é", "step": 5})
    found = snapshot.latest(tmp_path / "snapshots", 5)
    assert found is not None
    step, back, meta = found
    assert step == 5 and meta == {"note": "é", "step": 5} and back.keys() == given.keys()
    for name, tensor in given.items():
        assert back[name].dtype == tensor.dtype and back[name].shape == tensor.shape
        assert (
            back[name].numpy(force=True).tobytes() == tensor.detach().contiguous().numpy().tobytes()
            if (tensor.dtype != torch.bfloat16)
            else torch.equal(back[name].view(torch.int16), tensor.view(torch.int16))
        )


def test_newest_up_to_a_step(tmp_path: Path) -> None:
    """`latest` honours its limit and knows an empty or missing folder."""
    assert snapshot.latest(tmp_path / "none", 100) is None
    for step in (10, 20):
        snapshot.save(tmp_path, step, tensors(step), {})
    for limit, expected in ((9, None), (10, 10), (19, 10), (20, 20), (1000, 20)):
        found = snapshot.latest(tmp_path, limit)
        assert (found and found[0]) == expected
        assert found is None or torch.equal(found[1]["w"], tensors(found[0])["w"])


def test_keeps_the_newest_two(tmp_path: Path) -> None:
    """Rotation keeps two complete snapshots and clears what killed writers left."""
    (tmp_path / ".step-0000000005.99.tmp").mkdir(parents=True)
    for step in (10, 20, 30):
        snapshot.save(tmp_path, step, tensors(step), {})
    assert names(tmp_path) == ["step-0000000020", "step-0000000030"]


@pytest.mark.parametrize("damage", ["no marker", "no tensors", "short tensors", "bad marker", "bad meta"])
def test_unfinished_snapshot_is_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str) -> None:
    """A snapshot without its marker, or not what the marker says, is skipped with a warning."""
    snapshot.save(tmp_path, 10, tensors(10), {})
    bad = snapshot.save(tmp_path, 20, tensors(20), {})
    if damage == "no marker":
        (bad / "COMPLETE").unlink()
    elif damage == "no tensors":
        (bad / "tensors.safetensors").unlink()
    elif damage == "short tensors":
        data = (bad / "tensors.safetensors").read_bytes()
        (bad / "tensors.safetensors").write_bytes(data[:-1])
    elif damage == "bad marker":
        (bad / "COMPLETE").write_bytes(b"")
    else:
        (bad / "meta.json").write_bytes(b"{x")
    with caplog.at_level(logging.WARNING):
        found = snapshot.latest(tmp_path, 100)
    assert found is not None and found[0] == 10
    assert "step-0000000020 is skipped" in caplog.text


@pytest.mark.parametrize("name", ["COMPLETE", "meta.json", "tensors.safetensors"])
@pytest.mark.parametrize("kind", ["pipe", "link", "folder", "deep", "list", "long"])
def test_a_part_that_is_another_thing(tmp_path: Path, name: str, kind: str) -> None:
    """A pipe is not waited at, a link not followed, brackets and lists not taken for sizes: it is skipped."""
    snapshot.save(tmp_path / "s", 10, tensors(10), {})
    part = snapshot.save(tmp_path / "s", 20, tensors(20), {}) / name
    sizes, size = json.loads((part.parent / "COMPLETE").read_bytes()), part.stat().st_size
    part.rename(tmp_path / "elsewhere")
    if kind == "pipe":
        os.mkfifo(part)
    elif kind == "link":
        part.symlink_to(tmp_path / "elsewhere")
    elif kind == "folder":
        part.mkdir()
    else:
        part.write_bytes({"deep": b"[" * 50_000, "list": b"[1, 2]", "long": b" " * 99_999 + b"{}"}[kind])
    if name != "COMPLETE" and part.is_file():
        (part.parent / "COMPLETE").write_text(json.dumps(sizes | {name: part.stat().st_size}))
    assert size and (found := snapshot.latest(tmp_path / "s", 100)) is not None
    assert found[0] == 10
    snapshot.save(tmp_path / "s", 20, tensors(21), {})
    assert (found := snapshot.latest(tmp_path / "s", 100)) is not None and found[0] == 20
    assert (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("kind", ["file", "link", "pipe"])
def test_a_snapshot_that_is_no_folder(tmp_path: Path, kind: str) -> None:
    """It is none, and gives way to one of its step; what a link points to stays."""
    snapshot.save(tmp_path / "s", 10, tensors(10), {})
    path = tmp_path / "s" / "step-0000000020"
    if kind == "file":
        path.write_bytes(b"x")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(snapshot.save(tmp_path / "other", 20, tensors(5), {}))
    for name in ("step-\u00b2", "step-\u0663", "step-" + "9" * 200, "step-1"):
        (tmp_path / "s" / name).mkdir()
    assert (found := snapshot.latest(tmp_path / "s", 100)) is not None and found[0] == 10
    snapshot.save(tmp_path / "s", 20, tensors(20), {})
    assert (found := snapshot.latest(tmp_path / "s", 100)) is not None and torch.equal(found[1]["w"], tensors(20)["w"])
    assert kind != "link" or snapshot.latest(tmp_path / "other", 20) is not None


def test_rotation_never_takes_the_only_good_one(tmp_path: Path) -> None:
    """Unfinished newer snapshots do not count: the complete one stays until a newer complete one is there."""
    good = snapshot.save(tmp_path, 10, tensors(10), {})
    for step in (20, 30):
        (snapshot.save(tmp_path, step, tensors(step), {}) / "COMPLETE").unlink()
    assert (good / "COMPLETE").exists()
    snapshot.save(tmp_path, 40, tensors(40), {})
    assert names(tmp_path) == ["step-0000000010", "step-0000000040"]


def test_snapshots_of_a_course_that_was_left_go(tmp_path: Path) -> None:
    """After a run went back to an earlier step, its new snapshot stays and the later ones go."""
    for step in (100, 200):
        snapshot.save(tmp_path, step, tensors(step), {})
    snapshot.save(tmp_path, 50, tensors(50), {})
    assert names(tmp_path) == ["step-0000000050"]


def test_same_step_again(tmp_path: Path) -> None:
    """Writing a step again replaces it."""
    for value in (1.0, 2.0):
        snapshot.save(tmp_path, 10, tensors(value), {})
    found = snapshot.latest(tmp_path, 10)
    assert found is not None and torch.equal(found[1]["w"], tensors(2.0)["w"])


def test_marker_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill before the marker leaves a folder that is not taken for a snapshot."""
    write_file = snapshot.write_file

    def die(path: Path, data: bytes) -> None:
        if path.name == "COMPLETE":
            raise KeyboardInterrupt
        write_file(path, data)

    snapshot.save(tmp_path, 10, tensors(10), {})
    monkeypatch.setattr(snapshot, "write_file", die)
    with pytest.raises(KeyboardInterrupt):
        snapshot.save(tmp_path, 20, tensors(20), {})
    monkeypatch.undo()
    assert sorted(os.listdir(tmp_path / "step-0000000020")) == ["meta.json", "tensors.safetensors"]
    found = snapshot.latest(tmp_path, 100)
    assert found is not None and found[0] == 10


def test_full_disk(tmp_path: Path) -> None:
    """A disk that fills up is a RunError; the snapshot before stays and nothing is left aside."""
    snapshot.save(tmp_path, 10, tensors(10), {})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(RunError, match="snapshot of step 20 cannot be written.*zotune resume"):
            snapshot.save(tmp_path, 20, {"w": torch.zeros(100_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == ["step-0000000010"]
    found = snapshot.latest(tmp_path, 100)
    assert found is not None and found[0] == 10
