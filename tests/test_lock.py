"""The run folder's lock: one writer, and recovery when it is gone."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from zotune.errors import RunError
from zotune.lock import FolderLock

HOLD = (
    "import sys; from pathlib import Path; from zotune.lock import FolderLock\n"
    "lock = FolderLock.acquire(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()\n"
)


def holder(folder: Path) -> subprocess.Popen[str]:
    """Another process that holds the lock until its stdin closes."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def finish(process: subprocess.Popen[str]) -> None:
    """Collect a process and its pipes."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.close()
    process.wait()
    process.stdout.close()


def test_second_process_is_refused_by_pid(tmp_path: Path) -> None:
    """While another process holds the lock, the refusal names its pid."""
    process = holder(tmp_path)
    try:
        with pytest.raises(RunError, match=f"in use by process {process.pid}\\."):
            FolderLock.acquire(tmp_path)
    finally:
        finish(process)


def test_lock_of_a_killed_process_is_taken_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """SIGKILL leaves the file behind; the next writer goes on, also while the dead process is a zombie."""
    process = holder(tmp_path)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, but still a zombie
    lock = FolderLock.acquire(tmp_path)
    assert "taking over" in caplog.text
    assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    finish(process)
    lock.release()
    assert not (tmp_path / "lock").exists()


def test_lock_of_a_reused_pid_is_taken_over(tmp_path: Path) -> None:
    """A living process with the pid but another start time is not the owner."""
    owner = {"pid": os.getppid(), "host": socket.gethostname(), "started": "long ago"}
    (tmp_path / "lock").write_text(json.dumps(owner))
    lock = FolderLock.acquire(tmp_path)
    assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    lock.release()


def test_same_process_cannot_take_it_twice(tmp_path: Path) -> None:
    """The lock also keeps two writers of one process apart, and can be taken again once released."""
    lock = FolderLock.acquire(tmp_path)
    with pytest.raises(RunError, match=f"process {os.getpid()}"):
        FolderLock.acquire(tmp_path)
    lock.release()
    lock.release()
    FolderLock.acquire(tmp_path).release()


def test_lock_of_another_host_is_kept(tmp_path: Path) -> None:
    """A process on another host cannot be checked: refuse, and say which file to delete."""
    (tmp_path / "lock").write_text(json.dumps({"pid": 1, "host": "elsewhere", "started": "x"}))
    with pytest.raises(RunError, match="another host .elsewhere.*delete .*lock"):
        FolderLock.acquire(tmp_path)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"pid": "x"}', '{"pid": true}', "[" * 100_000, '{"pid": ' + "9" * 5000 + "}", "\0" * 99_999],
)
def test_unreadable_lock_is_taken_over(tmp_path: Path, content: str) -> None:
    """The lock file is written whole, so rubbish is nobody's lock."""
    (tmp_path / "lock").write_text(content)
    lock = FolderLock.acquire(tmp_path)
    assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    lock.release()


def test_release_leaves_a_foreign_lock(tmp_path: Path) -> None:
    """A lock that was taken over is not deleted by its former owner."""
    lock = FolderLock.acquire(tmp_path)
    foreign = json.dumps({"pid": 1, "host": "elsewhere", "started": "x"})
    (tmp_path / "lock").write_text(foreign)
    lock.release()
    assert (tmp_path / "lock").read_text() == foreign


def test_race_for_a_stale_lock_has_one_winner(tmp_path: Path) -> None:
    """Of eight processes that find the same stale lock, exactly one gets it."""
    (tmp_path / "lock").write_text(json.dumps({"pid": 2**22 + 1, "host": socket.gethostname(), "started": "x"}))
    script = (
        "import sys; from pathlib import Path; from zotune.lock import FolderLock\n"
        "from zotune.errors import RunError\n"
        "sys.stdin.readline()\n"
        "try:\n    lock = FolderLock.acquire(Path(sys.argv[1])); print('won', flush=True)\n"
        "except RunError:\n    print('lost', flush=True)\n"
        "sys.stdin.read()\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for _ in range(8)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = [process.stdout.readline().strip() for process in processes if process.stdout is not None]
    for process in processes:
        finish(process)
    assert sorted(answers) == ["lost"] * 7 + ["won"]
