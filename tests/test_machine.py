"""What is told of this machine: a process' own memory, not that of the one that started it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from zotune.machine import peak_memory_bytes


@pytest.mark.skipif(sys.platform != "linux", reason="other systems tell the memory of the process alone")
def test_the_peak_is_of_this_process_alone() -> None:
    """A small process that a large one starts has held little; what was held and freed counts."""
    large = torch.ones(50_000_000)  # 200 MB
    assert peak_memory_bytes() > 200e6
    code = "from zotune.machine import peak_memory_bytes as p; a = bytearray(60_000_000); del a; print(p())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 60e6 < int(done.stdout) < 150e6 and large.numel()
