"""The run folder: creation, one writer, metrics that a resume leaves as an undisturbed run would."""

from __future__ import annotations

import json
import os
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from zotune.errors import RunError
from zotune.journal import Journal, StepRecord
from zotune.run import RunFolder, RunPaths


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunFolder]:
    """A new run with a journal."""
    with RunFolder.create(tmp_path / "runs" / "x", "model: m\n") as folder:
        Journal.create(folder.paths.journal, {}).close()
        yield folder


def test_create_makes_folder_config_and_lock(tmp_path: Path) -> None:
    """A new run has its config and its lock; closing gives the lock back."""
    with RunFolder.create(tmp_path / "a" / "b", "model: m\n") as folder:
        assert (tmp_path / "a" / "b" / "config.yaml").read_text() == "model: m\n"
        assert (tmp_path / "a" / "b" / "lock").exists()
        assert folder.path == tmp_path / "a" / "b"
    assert not (tmp_path / "a" / "b" / "lock").exists()


@pytest.mark.parametrize("damaged", [False, True])
def test_create_refuses_a_folder_that_holds_a_run(run: RunFolder, damaged: bool) -> None:
    """The refusal says how to resume and changes nothing; a journal that cannot be read may hold steps."""
    with Journal.append_to(run.paths.journal) as journal:
        journal.append(StepRecord(0, (0.1,), (1.0, 2.0)))
    if damaged:
        run.paths.journal.write_bytes(b"?" + run.paths.journal.read_bytes()[1:])
    run.close()
    with pytest.raises(RunError, match=r"holds a run already.*zotune resume .*runs/x.*--output-dir"):
        RunFolder.create(run.path, "other: x\n")
    assert run.paths.config.read_text() == "model: m\n" and run.paths.journal.exists()


@pytest.mark.parametrize("name", ["snapshots", "metrics.jsonl"])
def test_create_refuses_the_remains_of_a_run(tmp_path: Path, name: str) -> None:
    """Snapshots or metrics of steps without a journal must not become part of a new run."""
    if name == "snapshots":
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_text('{"step": 0}\n{"step": 1}\n')
    with pytest.raises(RunError, match="holds a run already"):
        RunFolder.create(tmp_path, "")
    assert (tmp_path / name).exists()


def test_create_after_a_stop_before_the_first_step(tmp_path: Path) -> None:
    """What a run wrote before its first step is cleared away: the new run's metrics begin empty."""
    with RunFolder.create(tmp_path, "old: 1\n") as folder:
        folder.log_metrics({"step": 0, "eval": {}})
        folder.log_timing({"step": 0})
        Journal.create(folder.paths.journal, {}).close()
        with pytest.raises(RunError, match="in use by process"):  # a run that has only just begun
            RunFolder.create(tmp_path, "new: 1\n")
    with RunFolder.create(tmp_path, "new: 1\n") as folder:
        left = (folder.paths.journal, folder.paths.metrics, folder.paths.timing)
        assert not any(path.exists() for path in left)
        assert folder.paths.config.read_text() == "new: 1\n"


def test_create_in_other_folders(tmp_path: Path) -> None:
    """An empty folder, one with other files, and one left before its first step can be used."""
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "config.yaml").write_text("left: behind\n")
    with RunFolder.create(tmp_path, "model: m\n"):
        assert (tmp_path / "config.yaml").read_text() == "model: m\n"
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_create_where_a_file_is(tmp_path: Path) -> None:
    """A file in place of the folder, or of its parent, is a clear error."""
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="is a file"):
        RunFolder.create(tmp_path / "file", "")
    with pytest.raises(RunError, match="cannot be written"):
        RunFolder.create(tmp_path / "file" / "run", "")


def test_read_only_folder_fails_before_any_work() -> None:
    """A folder without write permission is refused with the reason, for a new run and for a resumed one."""
    with tempfile.TemporaryDirectory() as name:
        parent = Path(name)
        old = parent / "old"
        with RunFolder.create(old, "model: m\n") as folder:
            Journal.create(folder.paths.journal, {}).close()
        for path in (parent, old):
            path.chmod(0o555)
        user = os.geteuid()
        try:
            if user == 0:
                os.seteuid(65534)  # the permission bits do not bind root
            with pytest.raises(RunError, match="cannot be written: Permission denied"):
                RunFolder.create(parent / "new", "")
            with pytest.raises(RunError, match="cannot be written: Permission denied"):
                RunFolder.open(old)
        finally:
            os.seteuid(user)
            for path in (parent, old):
                path.chmod(0o755)


def test_full_disk_at_the_start(tmp_path: Path) -> None:
    """When the config cannot be written, the lock does not stay behind."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(RunError, match=r"config.yaml cannot be written"):
            RunFolder.create(tmp_path, "x" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_open_needs_a_run(tmp_path: Path) -> None:
    """A missing folder, an empty one and one without its config are told apart."""
    with pytest.raises(RunError, match="is not a folder"):
        RunFolder.open(tmp_path / "none")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").touch()
    with pytest.raises(RunError, match="model is a model, not a run. Remedy: --model .*model, where a model is taken"):
        RunFolder.open(tmp_path / "model")
    with pytest.raises(RunError, match="holds no run"):
        RunFolder.open(tmp_path)
    Journal.create(tmp_path / "journal.zoj", {}).close()
    with pytest.raises(RunError, match=r"has no config.yaml"):
        RunFolder.open(tmp_path)
    assert not (tmp_path / "lock").exists()


def test_one_writer(run: RunFolder) -> None:
    """While a run is open nobody else opens it; readers need no lock; afterwards it can be opened."""
    with pytest.raises(RunError, match=f"in use by process {os.getpid()}"):
        RunFolder.open(run.path)
    assert RunPaths(run.path).check().journal == run.paths.journal
    run.close()
    run.close()
    with RunFolder.open(run.path) as again:
        assert again.path == run.path


def test_metrics_are_lines(run: RunFolder) -> None:
    """Each row is one JSON line, NaN visible; timing goes to its own file."""
    run.log_metrics({"step": 1, "loss": 0.1 + 0.2})
    run.log_metrics({"step": 2, "loss": float("nan")})
    run.log_timing({"step": 1, "seconds": 0.5})
    rows = [json.loads(line) for line in run.paths.metrics.read_text().splitlines()]
    assert rows == [{"step": 1, "loss": 0.1 + 0.2}, {"step": 2, "loss": "nan"}]
    assert run.paths.timing.read_text() == '{"step": 1, "seconds": 0.5}\n'
    with pytest.raises(TypeError, match="step"):
        run.log_metrics({"loss": 1.0})


@pytest.mark.parametrize("lines", [0, 1, 3, 6])
@pytest.mark.parametrize("torn", [b"", b'{"step": 6, "lo', b'{"step": 1, "x": 1}', b"\xff\n", b"[]\n"])
def test_cut_metrics_ends_equal_to_an_undisturbed_run(run: RunFolder, lines: int, torn: bytes) -> None:
    """Cut at any line, with any unfinished last one, and written on: the same bytes as without the stop."""

    def log(first: int) -> None:
        for number in range(first, 6):
            run.log_metrics({"step": number, "loss": number / 3})

    log(0)
    undisturbed = run.paths.metrics.read_bytes()
    with run.paths.metrics.open("ab") as file:
        file.write(torn)
    assert [row["step"] for row in run.metrics()][:6] == list(range(6))
    run.cut_metrics(lines)
    assert [row["step"] for row in run.metrics()] == list(range(lines))
    log(lines)
    assert run.paths.metrics.read_bytes() == undisturbed


def test_cut_metrics_without_a_file(run: RunFolder) -> None:
    """A run stopped before its first metrics line has nothing to cut."""
    run.cut_metrics(10)
    assert run.metrics() == [] and not run.paths.metrics.exists()


def test_metrics_on_a_full_disk(run: RunFolder) -> None:
    """A metrics line that does not fit is a RunError, not a traceback."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(RunError, match=r"metrics.jsonl cannot be written"):
            run.log_metrics({"step": 1, "loss": 0.25})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert run.metrics() == []


def test_snapshots_go_to_their_folder(run: RunFolder) -> None:
    """The folder saves and finds snapshots below `snapshots/`."""
    run.save_snapshot(3, {"w": torch.ones(2)}, {"k": 1})
    found = run.latest_snapshot(3)
    assert found is not None and found[0] == 3 and found[2] == {"k": 1} and torch.equal(found[1]["w"], torch.ones(2))
    assert (run.paths.snapshots / "step-0000000003" / "COMPLETE").exists()
