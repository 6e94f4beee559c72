"""What is told of this machine: a process' own memory, not that of the one that started it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from zotune.machine import is_fault, is_shortage, peak_memory_bytes


@pytest.mark.skipif(sys.platform != "linux", reason="other systems tell the memory of the process alone")
def test_the_peak_is_of_this_process_alone() -> None:
    """A small process that a large one starts has held little; what was held and freed counts."""
    large = torch.ones(50_000_000)  # 200 MB
    assert peak_memory_bytes() > 200e6
    code = "from zotune.machine import peak_memory_bytes as p; a = bytearray(60_000_000); del a; print(p())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 60e6 < int(done.stdout) < 150e6 and large.numel()


def test_shortages_and_faults_are_told_apart() -> None:
    """Memory that ran out has a remedy; a device that failed has none here, and neither is a model's own error."""
    short = [MemoryError(), torch.OutOfMemoryError("x"), RuntimeError("[enforce] DefaultCPUAllocator: can't allocate")]
    short.append(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert all(is_shortage(error) and is_fault(error) for error in short)
    broken, own = RuntimeError("CUDA error: unspecified launch failure"), RuntimeError("shapes do not fit")
    assert is_fault(broken) and not is_shortage(broken)
    assert not is_fault(own) and not is_shortage(own)
