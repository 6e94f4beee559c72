"""The whole comparison: a process for each row, a table after each, what is finished stays, what fails says why."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zotune.comparison import compare as module
from zotune.comparison.compare import compare
from zotune.comparison.rows import make_rows
from zotune.config import TrainConfig
from zotune.errors import ConfigError, RunError
from zotune.lock import FolderLock
from zotune.session import Session
from zotune.watch import Quiet

Config = Callable[..., TrainConfig]


def run(config: TrainConfig, *names: str, settings: Any = ()) -> dict[str, Any]:
    return compare(config, make_rows(config, names, settings), Quiet())


def measured(value: float, **more: Any) -> Any:
    """A stand-in for the process of a row: writes a result, as that would."""

    def stand_in(folder: Path, row: Any) -> dict[str, Any]:
        found = {
            "row": row.name, "loss": value, "forwards": 0, "seconds": 1.0, "train_sha256": "a", "eval_sha256": "b",
            **more,
        }  # fmt: skip
        (folder / "rows" / f"{row.name}.json").write_text(json.dumps(found | {"settings": row.settings()}))
        return found

    return stand_in


def test_real_rows_and_one_that_cannot_run(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process each: the figures of this one, and why the other has none; then the other alone is tried again."""
    shared = config(objective="accuracy", scope="norms").absolute()
    names = ("mezo", "adamw")
    found = run(shared, *names)
    assert [row["row"] for row in found["rows"]] == list(names)
    mezo, failed = found["rows"]
    expected = Session(config(objective="accuracy")).evaluate()
    assert expected is not None
    assert (mezo["accuracy_before"], mezo["loss_before"]) == (expected.accuracy, expected.loss)
    assert "has no gradient" in failed["error"] and set(failed) == {"row", "error"}
    assert mezo["steps"] == 7 and (tmp_path / "run" / "runs" / "mezo" / "journal.zoj").exists()
    assert 100e6 < mezo["peak_memory_bytes"] < 800e6  # of a process of its own, which has not what this one has
    table = (tmp_path / "run" / "compare.md").read_text()
    assert "| mezo | norms |" in table and "cannot run: accuracy of the best candidates has no gradient" in table
    assert json.loads((tmp_path / "run" / "compare.json").read_text())["rows"] == found["rows"]
    assert not (tmp_path / "run" / "lock").exists()

    began: list[str] = []
    monkeypatch.setattr(
        module, "_measured", lambda folder, row: began.append(row.name) or {"row": row.name, "error": "x"}
    )
    again = run(shared, *names)
    assert began == ["adamw"] and again["rows"][0] == mezo


def test_other_settings_are_not_mixed(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finished row of another rate is refused by name; more rows, threads or another order are fine."""
    monkeypatch.setattr(module, "_measured", measured(0.5))
    shared = config()
    run(shared, "adamw", settings=["adamw.lr=1e-3"])
    with pytest.raises(RunError, match=r"adamw.json was measured with lr 0.001 \(now 0.01\).*Remedy"):
        run(shared, "adamw", settings=["adamw.lr=1e-2"])
    more = dataclasses.replace(shared, threads=2)
    assert len(run(more, "zero-shot", "adamw", settings=["adamw.lr=1e-3"])["rows"]) == 2
    path = tmp_path / "run" / "rows" / "adamw.json"
    older = json.loads(path.read_text())
    del older["settings"]["calibrated"]  # a version without it
    path.write_text(json.dumps(older))
    assert run(more, "adamw", settings=["adamw.lr=1e-3"])["rows"][0]["loss"] == 0.5
    path.write_text("{")
    with pytest.raises(RunError, match="is not a measured row. Remedy: delete it"):
        run(shared, "adamw")


def test_other_data_is_not_mixed(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that saw other held-out rows than the first has no figures in the table."""
    monkeypatch.setattr(module, "_measured", measured(0.5))
    run(config(), "zero-shot")
    monkeypatch.setattr(module, "_measured", measured(0.4, eval_sha256="c"))
    found = run(config(), "zero-shot", "mezo")["rows"]
    assert found[0]["loss"] == 0.5 and "held-out rows have changed since zero-shot" in found[1]["error"]


def test_the_table_is_there_before_the_last_row(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at the second row, the first is in the table and is kept; the lock is given back."""

    def stopped(folder: Path, row: Any) -> dict[str, Any]:
        if row.name == "adamw":
            raise KeyboardInterrupt
        return dict(measured(0.5)(folder, row))

    monkeypatch.setattr(module, "_measured", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(config(), "zero-shot", "adamw")
    table = json.loads((tmp_path / "run" / "compare.json").read_text())
    assert [row["row"] for row in table["rows"]] == ["zero-shot"] and not (tmp_path / "run" / "lock").exists()
    monkeypatch.setattr(module, "_measured", measured(0.1))
    assert [row["loss"] for row in run(config(), "zero-shot", "adamw")["rows"]] == [0.5, 0.1]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("kill -9 $$", "its process was killed, as a system does that runs out of memory"),
        ("kill -6 $$", "its process ended by signal 6"),
        ("exit 3", "its process ended with code 3"),
    ],
)
def test_a_process_that_dies_is_an_error_of_its_row(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, said: str
) -> None:
    """Whatever ends it, the table says how."""
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(script))
    assert said in run(config(), "zero-shot")["rows"][0]["error"]


def test_an_interrupt_ends_the_rows_process(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No process is left behind."""
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nexec sleep 60\n")
    script.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(script))
    started: list[subprocess.Popen[bytes]] = []

    class Interrupted(subprocess.Popen):  # type: ignore[type-arg]
        def wait(self, timeout: float | None = None) -> int:
            if not started:
                started.append(self)
                raise KeyboardInterrupt
            return super().wait(timeout)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(config(), "zero-shot")
    assert started[0].returncode == -15


def test_it_leaves_with_its_parent(config: Config, tmp_path: Path) -> None:
    """A row whose stdin ends before it has a result ends too, with the code that says so."""
    row = make_rows(config(steps=10**6), ["mezo"])[0]
    job = {"row": row.as_job(), "settings": {}, "result": str(tmp_path / "x.json")}
    command = [sys.executable, "-m", "zotune.comparison.work"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdin is not None
        process.stdin.write((json.dumps(job, default=str) + "\n").encode())
        process.stdin.close()
        assert process.wait(60) == 1


def test_refusals(config: Config, tmp_path: Path) -> None:
    """Before any process: no held-out rows, a folder in use, a file in its place."""
    with pytest.raises(ConfigError, match="no rows to compare on. Remedy: --eval FILE"):
        run(config(eval=None), "zero-shot")
    (tmp_path / "held").mkdir()
    lock = FolderLock.acquire(tmp_path / "held")
    with pytest.raises(RunError, match=f"in use by process {os.getpid()}.*Remedy"):
        run(config(output_dir=tmp_path / "held"), "zero-shot")
    lock.release()
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="is a file. Remedy"):
        run(config(output_dir=tmp_path / "file"), "zero-shot")


@pytest.mark.parametrize(
    ("device", "visible", "expected"),
    [
        ("auto", None, ("auto", "0")),
        ("cuda:1", None, ("cuda", "1")),
        ("cuda:1", "5,7", ("cuda", "7")),
        ("cuda", "GPU-ab,GPU-cd", ("cuda", "GPU-ab")),
        ("cuda:4", "5", ("cuda:4", "5")),
        ("cpu", "0,1", ("cpu", "0,1")),
        ("auto", "", ("auto", "")),
    ],
)
def test_one_gpu(monkeypatch: pytest.MonkeyPatch, device: str, visible: str | None, expected: tuple[str, str]) -> None:
    """A row's process sees the GPU that was named, or the first, and no other."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    named, environment = module._one_gpu(device)
    assert (named, environment["CUDA_VISIBLE_DEVICES"]) == expected
