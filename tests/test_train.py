"""Training and resuming: a run that was stopped anywhere ends as if nothing had happened."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests import courses
from tests.courses import COURSES, Config, Noting, Stopped, course, state, steps_of

import zotune
from zotune.config import TrainConfig
from zotune.errors import DataError, JournalError, NonFiniteLoss, RunError, UserError
from zotune.load import load_model
from zotune.methods import METHODS
from zotune.resolve import config_of
from zotune.revisit import replay
from zotune.run import RunFolder, RunPaths
from zotune.session import Session
from zotune.train import resume, train
from zotune.watch import Quiet
from zotune.weights import weights_sha256

half, whole, stop_before = courses.half, courses.whole, courses.stop_before


@pytest.mark.parametrize("name", COURSES)
def test_resumed_is_undisturbed(
    config: Config, tmp_path: Path, stop_before: Callable[[int | None], None], name: str
) -> None:
    """Stopped before the first step, after it, at an evaluation, a snapshot, both, and at the end: the same bytes."""
    whole = train(course(config, name, output_dir=tmp_path / "whole"), Quiet())
    stop_before(0)
    with pytest.raises(Stopped):
        train(course(config, name), Quiet())
    for k in (1, 2, 3, 6):
        stop_before(k)
        with pytest.raises(Stopped):
            resume(tmp_path / "run", Quiet())
    stop_before(None)
    resumed = resume(tmp_path / "run", Quiet())
    assert state(tmp_path / "run") == state(tmp_path / "whole")
    assert resumed["weights_sha256"] == whole["weights_sha256"] and resumed["steps"] == 7
    same = ("steps", "journal_bytes", *(key for key in whole if key.endswith(("_before", "_after"))))
    assert {key: resumed[key] for key in same} == {key: whole[key] for key in same}
    assert replay(tmp_path / "run", True, Quiet())["verified"]
    if METHODS[course(config, name).method].replayable:
        return
    model = load_model(course(config, name))
    before = weights_sha256(dict(model.named_parameters()))
    with pytest.raises(UserError, match="draws its directions from the inputs"):
        zotune.replay(tmp_path / "run" / "journal.zoj", model)
    assert weights_sha256(dict(model.named_parameters())) == before


def test_resume_names_what_has_moved(config: Config, tmp_path: Path, stop_before: Callable[[int | None], None]) -> None:
    """The rows lie elsewhere: the message says where to write it, and then the run goes on."""
    stop_before(2)
    with pytest.raises(Stopped):
        train(config(), Quiet())
    stop_before(None)
    rows, moved = config().train, tmp_path / "moved.jsonl"
    assert rows is not None
    path = tmp_path / "run" / "config.yaml"
    path.write_text(path.read_text().replace(str(rows), str(moved)))
    with pytest.raises(
        DataError, match=r"moved.jsonl does not exist any more. Remedy: correct `train:` in .*config.yaml"
    ):
        resume(tmp_path / "run", Quiet())
    shutil.copyfile(rows, moved)
    assert resume(tmp_path / "run", Quiet())["steps"] == 7


@pytest.mark.parametrize("k", range(8))
@pytest.mark.parametrize("name", ["mezo", "reuse"])
def test_one_stop(config: Config, tmp_path: Path, stop_before: Callable[[int | None], None], name: str, k: int) -> None:
    """One stop before each step, or none at all (k = 7): the resumed run's caches are cold, the bytes the same."""
    train(course(config, name, output_dir=tmp_path / "whole"), Quiet())
    stop_before(k)
    if k < 7:
        with pytest.raises(Stopped):
            train(course(config, name), Quiet())
        assert len(steps_of(tmp_path / "run")) == k
    else:
        train(course(config, name), Quiet())
    stop_before(None)
    resume(tmp_path / "run", Quiet())
    assert state(tmp_path / "run") == state(tmp_path / "whole")


def test_a_finished_run_is_left_alone(whole: Path) -> None:
    """Resuming it gives its result once more and writes to neither journal nor metrics."""
    before = state(whole)
    first, second = resume(whole, Quiet()), resume(whole, Quiet())
    assert state(whole) == before
    assert first["weights_sha256"] == second["weights_sha256"] and first["steps"] == 7
    assert first["accuracy_after"] is not None and 0 <= first["accuracy_before"] <= 1


def test_result(config: Config, whole: Path) -> None:
    """What the issue promises: counts, hash, accuracies with their intervals, and the losses of language modelling."""
    result = resume(whole, Quiet())
    assert result["journal_bytes"] == (whole / "journal.zoj").stat().st_size
    assert result["eval_examples"] == 10 and result["seconds"] >= 0
    for when in ("before", "after"):
        assert result[f"low_{when}"] < result[f"accuracy_{when}"] < result[f"high_{when}"]
    model = course(config, "language-model", eval=config().eval)
    found = train(model, Quiet())
    assert found["accuracy_after"] is None and found["loss_after"] != found["loss_before"]


def test_no_steps(config: Config, tmp_path: Path) -> None:
    """A run of no steps records the hash of the base weights, and replays."""
    found = train(config(steps=0), Quiet())
    assert found["steps"] == 0 and found["accuracy_before"] == found["accuracy_after"]
    assert replay(tmp_path / "run", True, Quiet())["weights_sha256"] == found["weights_sha256"]


def test_learning_at_all(config: Config) -> None:
    """The loop goes downhill: on a tiny model the loss of the training rows falls clearly."""
    rows = config().train
    found = train(config(eval=rows, steps=60, batch_size=22, lr=3e-2, queries=2), Quiet())
    assert found["loss_after"] < 0.9 * found["loss_before"]


def test_lr_zero_changes_nothing(config: Config, tmp_path: Path) -> None:
    """With a learning rate of 0 the run ends on the weights it began with."""
    begun = train(config(steps=0), Quiet())["weights_sha256"]
    for dtype in ("float32", "bfloat16", "float16"):
        same = train(config(steps=0, dtype=dtype, output_dir=tmp_path / f"0-{dtype}"), Quiet())["weights_sha256"]
        ended = train(config(lr=0.0, dtype=dtype, output_dir=tmp_path / f"7-{dtype}"), Quiet())["weights_sha256"]
        assert ended == same and (same == begun) == (dtype == "float32")


def test_another_seed_is_another_run(config: Config, tmp_path: Path) -> None:
    """The comparisons of this file are not between constants."""
    one, other = train(config(), Quiet()), train(config(seed=5, output_dir=tmp_path / "other"), Quiet())
    assert one["weights_sha256"] != other["weights_sha256"]


# --- what is lost or damaged in the run folder -----------------------------------------------------------------------


def test_watch(config: Config) -> None:
    """The watcher hears what the run is, each step, and each evaluation."""
    watch = Noting()
    train(course(config, "reuse"), watch)
    assert watch.steps == [1, 2, 3, 4, 5, 6, 7] and watch.evals == [0, 3, 6, 7]
    assert watch.info["reused"] == "2 blocks below the scope run once per batch"
    assert watch.info["step"] == "4 forwards, one batch for both sides"
    assert watch.info["data"] == "22 examples in 8 fixed batches"


def test_torn_tail(half: Path, whole: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Half a record at the end of the journal is cut with a warning, and the step is taken again."""
    path = half / "journal.zoj"
    path.write_bytes(path.read_bytes()[:-5])
    with caplog.at_level(logging.WARNING, "zotune"):
        resume(half, Quiet())
    assert "of an unfinished record" in caplog.text
    assert state(half) == state(whole)


def test_corrupt_middle(half: Path) -> None:
    """A flipped bit before the end stops everything, with its place, and changes no file."""
    path = half / "journal.zoj"
    data = bytearray(path.read_bytes())
    data[-60] ^= 1
    path.write_bytes(data)
    before = state(half)
    with pytest.raises(JournalError, match=r"byte \d+"):
        resume(half, Quiet())
    with pytest.raises(JournalError, match=r"byte \d+"):
        replay(half, True, Quiet())
    assert state(half) == before
    with pytest.raises(RunError, match="holds a run already"):
        train(resolved(half), Quiet())


def resolved(run: Path) -> TrainConfig:
    """A run's own config."""
    return config_of(RunPaths(run))


# --- what a run is may not change under it ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "changed", "said"),
    [
        ("seed: 4", "seed: 5", "seed is 5 in config.yaml, the run began with 4"),
        ("lr: 0.01", "lr: 0.02", "lr is 0.02 in config.yaml, the run began with 0.01"),
        ("eps: 0.01", "eps: 0.02", "eps is 0.02"),
        ("batch_size: 6", "batch_size: 3", "batch_size is 3"),
        ("steps: 7", "steps: 9", "steps is 9"),
        ("method: mezo", "method: sparse_mezo", "method is 'sparse_mezo'"),
        ("dtype: float32", "dtype: bfloat16", "dtype is 'bfloat16'"),
        ("scope: full", "scope: norms", "scope is 'norms'"),
        ("eval_every: 3", "eval_every: 2", "eval_every is 2"),
    ],
)
def test_changed_config(half: Path, line: str, changed: str, said: str) -> None:
    """config.yaml is the run's own: an option that decides its course cannot change. Restored, the run goes on."""
    path, before = half / "config.yaml", state(half)
    text = path.read_text()
    assert f"\n{line}\n" in text
    path.write_text(text.replace(f"\n{line}\n", f"\n{changed}\n"))
    with pytest.raises(RunError, match=f"cannot continue: {said}.* Remedy: restore it"):
        resume(half, Quiet())
    assert state(half) == before
    path.write_text(text)
    assert resume(half, Quiet())["steps"] == 7


def _changed_model(folder: Path, to: Path, name: str) -> Path:
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, to)
    tensors = load_file(to / "model.safetensors")
    tensors[name].view(-1)[0] += 1e-3
    save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    return to


@pytest.mark.parametrize("name", ["model.norm.weight", "model.embed_tokens.weight"])
def test_changed_base_model(
    config: Config, tiny: Callable[[str], Path], tmp_path: Path, stop_before: Callable[[int | None], None], name: str
) -> None:
    """One weight of the base model, in scope or below it, is enough for resume and replay to refuse."""
    stop_before(3)
    with pytest.raises(Stopped):
        train(config(scope="last:1"), Quiet())
    path = tmp_path / "run" / "config.yaml"
    path.write_text(
        path.read_text().replace(str(tiny("llama")), str(_changed_model(tiny("llama"), tmp_path / "m", name)))
    )
    before = state(tmp_path / "run")
    with pytest.raises(RunError, match="the base model's weights have changed since the run began .*it was .*Remedy"):
        resume(tmp_path / "run", Quiet())
    with pytest.raises(RunError, match=r"(base|model's weights).* Remedy"):
        replay(tmp_path / "run", False, Quiet())
    assert state(tmp_path / "run") == before


@pytest.mark.parametrize(("file", "said"), [("train", "training rows"), ("eval", "held-out rows")])
def test_changed_rows(half: Path, tmp_path: Path, file: str, said: str) -> None:
    """The rows may lie elsewhere, but must be the same to the byte."""
    config = half / "config.yaml"
    old = Path(str(getattr(resolved(half), file)))
    new = tmp_path / f"{file}-moved.jsonl"
    config.write_text(config.read_text().replace(str(old), str(new)))
    new.write_bytes(old.read_bytes() + b"\n")
    with pytest.raises(RunError, match=f"the {said} have changed since the run began"):
        resume(half, Quiet())
    new.write_bytes(old.read_bytes())
    assert resume(half, Quiet())["steps"] == 7


def test_moved_run(half: Path, whole: Path, tmp_path: Path) -> None:
    """A run folder can be moved; the result names the new place."""
    half.rename(tmp_path / "elsewhere")
    assert resume(tmp_path / "elsewhere", Quiet())["run"] == str(tmp_path / "elsewhere")
    assert state(tmp_path / "elsewhere") == state(whole)


# --- what fails leaves nothing in the way ----------------------------------------------------------------------------


def test_failure_before_the_first_step_blocks_nothing(config: Config, tmp_path: Path, tiny: Any) -> None:
    """After an unknown model, an unknown scope and a NaN loss, the corrected command takes the same folder."""
    with pytest.raises(UserError, match="cannot be loaded"):
        train(config(model=str(tmp_path / "nowhere")), Quiet())
    with pytest.raises(UserError, match="unknown scope"):
        train(config(scope="everything"), Quiet())
    with pytest.raises(NonFiniteLoss, match="step 0"):
        train(config(eps=1e6, dtype="float16"), Quiet())
    found = train(config(), Quiet())
    again = train(config(output_dir=tmp_path / "fresh"), Quiet())
    assert found["weights_sha256"] == again["weights_sha256"]
    assert state(tmp_path / "run") == state(tmp_path / "fresh")
    with pytest.raises(RunError, match="holds a run already. Remedy: `zotune resume"):
        train(config(), Quiet())


def test_non_finite_loss_keeps_the_steps_before(config: Config, tmp_path: Path) -> None:
    """A run that diverges stops at the bad step, with all steps before it in the journal and replayable."""
    with pytest.raises(NonFiniteLoss, match=r"step (\d+)"):
        train(config(lr=1e6, dtype="float16", steps=50), Quiet())
    taken = len(steps_of(tmp_path / "run"))
    assert taken >= 1
    assert replay(tmp_path / "run", False, Quiet())["steps"] == taken
    with pytest.raises(RunError, match="no hash of its last step"):
        replay(tmp_path / "run", True, Quiet())


def test_stopped_before_the_journal(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path
) -> None:
    """Stopped while evaluating for the first time: resume starts the run anew, to the same end."""
    evaluate = Session.evaluate
    monkeypatch.setattr(Session, "evaluate", lambda session: (_ for _ in ()).throw(Stopped()))
    with pytest.raises(Stopped):
        train(course(config, "mezo"), Quiet())
    assert not (tmp_path / "run" / "journal.zoj").exists()
    monkeypatch.setattr(Session, "evaluate", evaluate)
    resume(tmp_path / "run", Quiet())
    assert state(tmp_path / "run") == state(whole)


def test_a_journal_that_is_gone(half: Path) -> None:
    """Steps were taken, but the journal was deleted: resume says so, and does not begin anew or name itself."""
    (half / "journal.zoj").unlink()
    with pytest.raises(RunError, match="has lost its journal.zoj. Remedy: restore it"):
        resume(half, Quiet())
    assert (half / "snapshots").exists() and not (half / "lock").exists()


def test_folder_in_use(half: Path, config: Config) -> None:
    """While a living process has the folder, neither train nor resume touches it."""
    with RunFolder.open(half):
        before = state(half)
        with pytest.raises(RunError, match="in use by process"):
            resume(half, Quiet())
        assert state(half) == before
    assert resume(half, Quiet())["steps"] == 7
