"""From a stopped run to where it was: metrics and snapshots that are damaged cost time, a wrong hash is an error."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import courses
from tests.courses import Noting, state

from zotune.config import TrainConfig
from zotune.errors import RunError
from zotune.journal import HashRecord, Journal
from zotune.journal import read as read_journal
from zotune.train import resume, train
from zotune.watch import Quiet
from zotune.weights import weights_sha256

Config = Callable[..., TrainConfig]

half, whole, stop_before = courses.half, courses.whole, courses.stop_before


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: b"",
        lambda text: text[:-3],
        lambda text: text[:100],
        lambda text: text.replace(b'{"step": 3, "loss"', b'{"step": 3, "lost"'),
        lambda text: text.replace(b'{"step": 3, "eval"', b'{"step": 9, "eval"'),
        lambda text: b"".join(text.splitlines(keepends=True)[1:]),
        lambda text: text.replace(b"\n", b"\n\n").replace(b"}", b"}\xff", 1),
        lambda text: text + text,
    ],
)
def test_metrics_are_written_again(half: Path, whole: Path, damage: Callable[[bytes], bytes]) -> None:
    """Metrics that are lost, cut, with a hole, or with lines that do not belong there end as the undisturbed run's."""
    path = half / "metrics.jsonl"
    damaged = damage(path.read_bytes())
    assert damaged != path.read_bytes()
    path.write_bytes(damaged)
    resume(half, Quiet())
    assert state(half) == state(whole)


def test_metrics_file_is_gone(half: Path, whole: Path) -> None:
    """The whole file is made again, evaluations included."""
    (half / "metrics.jsonl").unlink()
    resume(half, Quiet())
    assert state(half) == state(whole)


def _alter_weights(snapshot: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(snapshot / "tensors.safetensors")
    next(iter(tensors.values())).view(-1)[0] += 1
    save_file(tensors, snapshot / "tensors.safetensors")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: (path / "COMPLETE").unlink(), "step-0000000004 is skipped: it has no COMPLETE"),
        (lambda path: (path / "tensors.safetensors").write_bytes(b"x"), "does not have the size"),
        (_alter_weights, "The snapshot of step 4 does not hold the weights it was made of"),
        (lambda path: shutil.rmtree(path.parent), ""),
    ],
)
def test_damaged_snapshots_only_cost_time(
    half: Path, whole: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None], said: str
) -> None:
    """A snapshot without its marker, cut, with a changed weight, or gone: said, and the run ends the same."""
    damage(half / "snapshots" / "step-0000000004")
    watch = Noting()
    with caplog.at_level(logging.WARNING, "zotune"):
        resume(half, watch)
    assert said in caplog.text + " ".join(watch.said)
    assert state(half) == state(whole)


CARRYING: dict[str, dict[str, Any]] = {
    "rule": {"method": "lozo_m"},
    "probes": {"method_args": {"moments": "adam", "history": 3}, "queries": 2},
    "estimator": {"method_args": {"feedback": "residual"}},
    "direction": {"method": "conmezo"},
}


@pytest.fixture
def stopped(config: Config, stop_before: Callable[[int | None], None], tmp_path: Path) -> Callable[..., Path]:
    """`stopped(**options)`: a run that was stopped before its step 5; the same one, undisturbed, is beside it."""

    def make(**options: Any) -> Path:
        train(courses.course(config, "mezo", output_dir=tmp_path / "whole", **options), Quiet())
        stop_before(5)
        with pytest.raises(courses.Stopped):
            train(courses.course(config, "mezo", **options), Quiet())
        stop_before(None)
        return config().output_dir

    return make


def flip(snapshot: Path) -> None:
    """One bit of the last tensor that a snapshot carries; the sizes stay."""
    path = snapshot / "tensors.safetensors"
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    end = max(entry["data_offsets"][1] for name, entry in header.items() if name.startswith("carried:"))
    data[start + end - 1] ^= 0x40
    path.write_bytes(data)


@pytest.mark.parametrize("what", CARRYING)
def test_a_flipped_bit_of_what_is_carried(stopped: Callable[..., Path], tmp_path: Path, what: str) -> None:
    """A snapshot whose momentum, probes or curvature differ by a bit is left out, and the run ends as ever."""
    run = stopped(**CARRYING[what])
    flip(run / "snapshots" / "step-0000000004")
    watch = Noting()
    resume(run, watch)
    assert "The snapshot of step 4 does not hold what the method carried; it is left out." in watch.said
    assert state(run) == state(tmp_path / "whole")


@pytest.mark.parametrize("what", ["rule", None])
def test_snapshots_of_a_version_without_that_hash(
    stopped: Callable[..., Path], tmp_path: Path, what: str | None
) -> None:
    """Where something is carried they cost a longer replay; without anything they serve as they did."""
    run = stopped(**(CARRYING[what] if what else {}))
    for meta in run.glob("snapshots/*/meta.json"):
        old = {"weights_sha256": json.loads(meta.read_bytes())["weights_sha256"]}
        meta.write_text(json.dumps(old))
        marker = meta.with_name("COMPLETE")
        marker.write_text(json.dumps(json.loads(marker.read_bytes()) | {"meta.json": meta.stat().st_size}))
    watch = Noting()
    resume(run, watch)
    assert any("did not record the hash" in said for said in watch.said) == bool(what)
    assert any("Replayed steps 4 to 5" in said for said in watch.said) != bool(what)
    assert state(run) == state(tmp_path / "whole")


@pytest.mark.parametrize("name", ["x", "other/thing", "eps/halvings/more", "rule/nothing"])
def test_carried_tensors_of_another_method(stopped: Callable[..., Path], name: str) -> None:
    """With a hash that fits: refused by name, or of no effect, but never another error."""
    from safetensors.torch import load_file, save_file

    run = stopped(method="hizoo")
    folder = run / "snapshots" / "step-0000000004"
    tensors = load_file(folder / "tensors.safetensors") | {f"carried:{name}": torch.zeros(3)}
    carried = {key.removeprefix("carried:"): value for key, value in tensors.items() if key.startswith("carried:")}
    meta = json.loads((folder / "meta.json").read_bytes()) | {"carried_sha256": weights_sha256(carried)}
    save_file(tensors, folder / "tensors.safetensors")
    (folder / "meta.json").write_text(json.dumps(meta))
    sizes = {part: (folder / part).stat().st_size for part in ("tensors.safetensors", "meta.json")}
    (folder / "COMPLETE").write_text(json.dumps(sizes))
    if name in ("x", "other/thing"):
        with pytest.raises(
            RunError, match=f"step 4 carries is not of this method .*{name}.*Remedy: delete .*snapshots"
        ):
            resume(run, Quiet())
    else:
        assert resume(run, Quiet())["steps"] == 7


def test_a_snapshot_without_a_recorded_hash(half: Path, whole: Path) -> None:
    """One that the journal does not vouch for is not used, whatever its own file says of it."""
    path = half / "journal.zoj"
    header, records, _ = read_journal(path)
    path.unlink()
    with Journal.create(path, header) as journal:
        for record in records:
            if not (isinstance(record, HashRecord) and record.step == 4):
                journal.append(record)
    _alter_weights(half / "snapshots" / "step-0000000004")
    watch = Noting()
    resume(half, watch)
    assert any("Replayed steps 2 to 5" in said for said in watch.said)
    assert courses.steps_of(half) == courses.steps_of(whole)
    assert (half / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_recorded_hash_is_checked(half: Path) -> None:
    """A hash on the way that the replayed weights do not have stops a resume, even without a snapshot."""
    shutil.rmtree(half / "snapshots")
    path = half / "journal.zoj"
    header, records, _ = read_journal(path)
    path.unlink()
    with Journal.create(path, header) as journal:
        for record in records:
            journal.append(HashRecord(2, "ab" * 32) if isinstance(record, HashRecord) and record.step == 2 else record)
    with pytest.raises(RunError, match="weights after 2 steps are not those that the run recorded"):
        resume(half, Quiet())
