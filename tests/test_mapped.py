"""Pages of mapped files: given back once, the same when they are read again, and nobody else's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.models import normals
from torch import Tensor

from zotune.mapped import clean_mappings, release

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells of its mappings")


def _mapped(folder: Path) -> dict[str, Tensor]:
    weights = {"a": normals((1024, 1024), 1), "b": normals((1024, 1024), 2)}
    save_file(weights, folder / "w.safetensors")
    return load_file(folder / "w.safetensors")


def _resident(start: int) -> int:
    """Bytes in memory of the mapping that begins at or before `start` and holds it."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        low, dash, high = line.split(" ", 1)[0].partition("-")
        if dash:
            inside = int(low, 16) <= start < int(high, 16)
        elif inside and line.startswith("Rss:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no such mapping")


def test_released_pages_are_not_held_and_read_again_as_they_were(tmp_path: Path) -> None:
    """What a tensor of 4 MB held is gone but for the pages at its ends; its values come back from the file."""
    found = _mapped(tmp_path)["a"]
    copy = found.clone()
    before = _resident(found.data_ptr())
    release(found, clean_mappings())
    assert before - _resident(found.data_ptr()) >= copy.numel() * 4 - 3 * 4096
    assert torch.equal(found, copy)


def test_a_mapping_that_was_written_to_is_left_alone(tmp_path: Path) -> None:
    """One changed value, and its mapping is not a clean one any more: the change is kept."""
    found = _mapped(tmp_path)
    assert any(low <= found["a"].data_ptr() < high for low, high in clean_mappings())
    found["b"][512, 512] = 3.0
    mappings = clean_mappings()
    assert not any(low <= found["a"].data_ptr() < high for low, high in mappings)
    release(found["b"], mappings)
    assert found["b"][512, 512] == 3.0


def test_memory_of_no_file_is_left_alone() -> None:
    """A tensor of torch's own keeps its values: its pages could not be read again."""
    own = normals((1024, 1024), 3)
    copy = own.clone()
    release(own, clean_mappings())
    assert torch.equal(own, copy)


def test_a_system_that_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without /proc there are no mappings to speak of."""

    def refuse(*_: object) -> str:
        raise OSError

    monkeypatch.setattr(Path, "read_text", refuse)
    assert clean_mappings() == []


PROGRAM = """
import sys, torch
from pathlib import Path
from zotune.mapped import give_back_freed
def held():
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmRSS"))
    return int(line.split()[1]) * 1024
if sys.argv[1] == "given back":
    give_back_freed()
kept, before = [], held()
for size in range(20, 60):  # blocks of 2 to 6 MB, each freed while a small one behind it stays
    block = torch.ones(size * 25_000)
    kept.append(torch.ones(30_000))
    del block
print(held() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system does not tell what a process holds")
def test_what_is_freed_goes_back(tmp_path: Path) -> None:
    """Blocks that are freed between others that stay are not held any more; what stays is about 5 MB."""
    # glibc itself keeps them only after some use; so told it does from the start, on every machine.
    keeps = {"MALLOC_MMAP_THRESHOLD_": str(1 << 25), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}
    held = {}
    for kind in ("kept", "given back"):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, kind], capture_output=True, text=True, check=True, env=os.environ | keeps
        )
        held[kind] = int(done.stdout)
    assert held["given back"] < 12_000_000 and held["given back"] <= held["kept"]
