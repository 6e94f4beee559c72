"""Which process runs: told from later ones with its pid."""

from __future__ import annotations

import os
import subprocess
import sys

from zotune.processes import is_gone, process_started


def test_process_started() -> None:
    """A living process has a start that stays; a pid that cannot exist has none."""
    assert process_started(os.getpid()) == process_started(os.getpid()) is not None
    assert process_started(os.getpid()) != process_started(1)  # not the parent: both may begin in one clock tick
    assert process_started(2**22 + 1) is None
    assert process_started(0) is None and process_started(-1) is None


def test_is_gone() -> None:
    """Another process is gone when it has ended, also before its parent has collected it; this one counts too."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert not is_gone(process.pid) and is_gone(os.getpid())
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert is_gone(process.pid)
    process.communicate()
    assert is_gone(process.pid) and is_gone(2**22 + 1)
