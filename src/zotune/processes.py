"""Whether a process still runs. Needs only the standard library."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path


def process_started(pid: int) -> str | None:
    """What tells this process from a later one with the same pid; None when no such process runs.

    On Linux the boot and the clock ticks since it, so a clock that is set back changes nothing.
    """
    if pid <= 0:
        return None
    if Path("/proc/self/stat").exists():
        try:
            # The name in brackets may hold anything; the fields are counted from the last bracket.
            fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            return None
        if fields[0] in "ZXx":  # dead, only not yet collected by its parent
            return None
        with contextlib.suppress(OSError):
            return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}:{fields[19]}"
        return fields[19]
    answer = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None


def is_gone(pid: int) -> bool:
    """Whether what a process left aside is of no use to it any more: it runs no longer, or it is this one."""
    return pid == os.getpid() or process_started(pid) is None
