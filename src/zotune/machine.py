"""What this machine has: memory, its peak use, threads, and a name under which measurements of it are kept.

torch is imported on use.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def peak_memory_bytes(device: Any = "cpu") -> int:
    """The most memory held so far, in bytes: of this process, or on a CUDA device what torch allocated there.

    0 where the system does not tell.
    """
    if str(device).startswith("cuda"):
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    # On Linux getrusage begins with what the process that started this one held.
    if (own := _status("VmHWM")) is not None:
        return own
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def is_shortage(error: BaseException) -> bool:
    """Whether this is what Python or torch raise where memory ran out."""
    import torch

    # For the CPU torch has no class of its own, and none for what cuBLAS allocates itself; of a file that is mapped the
    # system says that there is no room for it.
    said = ("DefaultCPUAllocator: ", "CUBLAS_STATUS_ALLOC_FAILED", "Cannot allocate memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(each in str(error) for each in said)


def shortage_said(error: BaseException) -> str:
    """The first sentence of such an error, without a full stop and the place in torch's sources."""
    first = (str(error).strip() or "out of memory").splitlines()[0].rstrip(".")
    return first.rpartition("] err == 0. ")[2]


def is_fault(error: BaseException) -> bool:
    """Whether nothing on the device can go on after this: memory ran out there, or the device itself failed."""
    return is_shortage(error) or str(error).startswith("CUDA error")


@contextmanager
def memory_above() -> Iterator[list[int]]:
    """Yields a list that afterwards holds how far this process's memory rose above where it was, in bytes.

    0 where the system keeps no such mark that can be reset (Linux does).
    """
    found: list[int] = []
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmHWM")
    except OSError:
        before = None
    yield found
    after = _status("VmHWM")
    found.append(0 if before is None or after is None else after - before)


def free_memory_bytes(device: Any = "cpu") -> int | None:
    """Bytes that a new process can still have; within a container its limit counts. None when unknown."""
    if str(device).startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    found = [_meminfo("MemAvailable"), _limit_left()]
    known = [value for value in found if value is not None]
    return min(known) if known else None


def free_disk_bytes(folder: Path) -> int:
    """Bytes free on the disk of `folder`, or of the nearest parent that exists."""
    folder = folder.resolve()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def offline() -> bool:
    """Whether the user's environment forbids the network, as the hub's library understands it."""
    said = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return said.upper() in ("1", "ON", "YES", "TRUE")


def processor() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def fingerprint(*parts: object) -> str:
    """A short name of this machine and its torch, and of `parts`: a measurement is kept under it."""
    import torch

    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    words = [processor(), os.cpu_count(), *devices, torch.__version__, torch.get_num_threads(), *parts]
    return hashlib.sha256(repr(words).encode()).hexdigest()[:16]


def _meminfo(name: str) -> int | None:
    return _kilobytes(Path("/proc/meminfo"), name)


def _status(name: str) -> int | None:
    return _kilobytes(Path("/proc/self/status"), name)


def _kilobytes(path: Path, name: str) -> int | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")]
    return found[0] if found else None


def _limit_left() -> int | None:
    """What a cgroup of version 2 still allows."""
    root = Path("/sys/fs/cgroup")
    try:
        return int((root / "memory.max").read_text()) - int((root / "memory.current").read_text())
    except (OSError, ValueError):  # none, or "max"
        return None
