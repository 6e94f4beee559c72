"""Out of memory: one message with foreseen and actual, and a run that goes on in smaller forwards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.courses import before_step

from zotune.cli import main
from zotune.config import TrainConfig
from zotune.errors import ConfigError, OutOfMemory
from zotune.forecast import foreseen
from zotune.journal import StepRecord
from zotune.journal import read as read_journal
from zotune.machine import is_shortage, shortage_said
from zotune.session import Session
from zotune.shortage import _room, _smaller, explain, explained
from zotune.train import resume, train
from zotune.watch import Quiet

Config = Callable[..., TrainConfig]


def _allocation() -> None:
    torch.empty(1 << 58)  # what no machine has


@pytest.fixture
def short_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """`short_at(k)`: the allocation of step k fails, for real; None: no more."""
    return before_step(monkeypatch, _allocation)


def _losses(run: Path) -> list[tuple[float, ...]]:
    return [record.losses for record in read_journal(run / "journal.zoj")[1] if isinstance(record, StepRecord)]


def test_what_is_said_of_a_shortage() -> None:
    """torch's first sentence without the place in its sources; a file that cannot be mapped counts too."""
    with pytest.raises(RuntimeError) as found:
        _allocation()
    assert shortage_said(found.value).startswith("DefaultCPUAllocator: can't allocate memory: you tried")
    assert shortage_said(MemoryError()) == "out of memory"
    assert is_shortage(OSError(12, "Cannot allocate memory")) and not is_shortage(
        OSError(28, "No space left on device")
    )


def test_what_a_shortage_is() -> None:
    """Torch's own errors of both devices, and Python's; no other RuntimeError."""
    with pytest.raises(RuntimeError) as found:
        _allocation()
    assert is_shortage(found.value)
    assert is_shortage(MemoryError()) and is_shortage(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_shortage(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({}, 3),
        ({"method": "lozo"}, 2),
        ({"method": "grzo"}, 2),
        ({"scope": "last:1", "queries": 2}, 1),
        ({"method": "es"}, 4),
    ],
)
def test_a_run_goes_on_in_smaller_forwards(
    config: Config, tmp_path: Path, short_at: Callable[[int | None], None], options: dict[str, Any], rows: int
) -> None:
    """The records before the shortage stay to the byte; those after it are the undisturbed run's, but for rounding."""
    options = {"lr": 1e-3, **options}  # so that rounding stays rounding
    train(config(output_dir=tmp_path / "whole", **options), Quiet())
    short_at(3)
    with pytest.raises(OutOfMemory, match="No recorded step is lost"):
        train(config(**options), Quiet())
    short_at(None)
    resume(tmp_path / "run", Quiet(), places={"rows_per_forward": rows, "eval_batch_size": 2})
    whole, parts = _losses(tmp_path / "whole"), _losses(tmp_path / "run")
    assert len(parts) == len(whole) == 7 and parts[:3] == whole[:3]
    for one, other in zip(whole, parts, strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_the_message_compares_foreseen_and_taken(
    config: Config, tmp_path: Path, short_at: Callable[[int | None], None]
) -> None:
    """Before the first record too; and the command that it names does go on."""
    short_at(0)
    with pytest.raises(OutOfMemory) as found:
        train(config(), Quiet())
    text = str(found.value)
    assert text.startswith("DefaultCPUAllocator") and "Foreseen: about" in text and "taken:" in text
    assert f"`zotune resume {tmp_path / 'run'} --rows-per-forward 4 --eval-batch-size" in text
    short_at(None)
    assert resume(tmp_path / "run", Quiet(), places={"rows_per_forward": 2})["steps"] == 7


def test_the_largest_part_decides_the_remedy(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept activations are given up first; a method that must see whole batches is not told to split them."""
    terms = {"runtime": 9, "weights": 5, "activations": 1, "reused": 1, "state": 1, "loading": 0, "peak": 12}
    monkeypatch.setattr("zotune.shortage.foreseen", lambda _, **places: terms)
    session = Session(config()).begin()

    def remedy() -> str:
        return explain(session, MemoryError()).split("Remedy: ")[1]

    assert "--offload disk`: the same steps" in remedy()
    terms["activations"] = 6
    assert "--rows-per-forward 4" in remedy()
    terms["activations"] = 1
    terms["reused"] = 6
    assert "--reuse-mb 0`" in remedy() and "rows" not in remedy()
    terms["state"] = 7
    assert "another method" in remedy()
    session = Session(config(method="agzo")).begin()
    assert "--rows-per-forward" not in remedy()


def test_the_rows_are_those_that_fit(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of them where that is foreseen to fit, else the most that do; where nothing does, it is said."""
    session = Session(config(batch_size=16, eval_batch_size=16)).begin()
    session.held_bytes = 0  # beside so small a model the libraries are all there is
    monkeypatch.setattr("zotune.forecast.kept", lambda *_: None)
    peaks = {
        rows: foreseen(session, rows_per_forward=rows, eval_batch_size=2 * rows)["peak"]  # type: ignore[index]
        for rows in (8, 4, 2, 1)
    }
    assert peaks[8] > peaks[4] > peaks[2] > peaks[1]
    for rows, peak in peaks.items():
        flags, found = _smaller(session, 8, peak)
        assert flags == f"--rows-per-forward {rows} --eval-batch-size {2 * rows}" and found == peak
    assert _smaller(session, 8, 1.0) == ("--rows-per-forward 1 --eval-batch-size 2", peaks[1])
    session.held_bytes = 10**9  # fewer rows would not help
    assert _smaller(session, 8, 1.0)[0] == "--rows-per-forward 8 --eval-batch-size 16"


def test_the_room_is_what_there_is(config: Config) -> None:
    """What is held and free; where that should have been enough and was not, what the process got."""
    session = Session(config()).begin()
    large, small = {"peak": 10**15}, {"peak": 1}
    assert _room(session, large, 10**9, 10**12) == pytest.approx(0.95 * 10**12, rel=0.1)
    assert _room(session, small, 10**9, 10**12) == 10**9


def test_other_errors_pass(config: Config) -> None:
    """What is no shortage is not called one."""
    session = Session(config())
    with pytest.raises(RuntimeError, match="else"), explained(session):
        raise RuntimeError("something else")


def test_what_needs_whole_batches_refuses_parts(config: Config) -> None:
    """Directions from the batch's activations would be others; one score of a batch would be another score."""
    with pytest.raises(ConfigError, match="agzo reads the layers' inputs of a whole micro-batch"):
        Session(config(method="agzo", rows_per_forward=2)).begin()
    with pytest.raises(ConfigError, match="is one number for a batch"):
        Session(config(objective="macro_f1", rows_per_forward=2)).begin()
    Session(config(method="agzo", rows_per_forward=8)).begin()  # all rows of a batch: no parts


def test_only_places_change_within_a_run(config: Config, tmp_path: Path) -> None:
    """Another seed would be another run."""
    with pytest.raises(ConfigError, match="seed cannot change within a run"):
        resume(tmp_path / "run", Quiet(), places={"seed": 3})


@pytest.mark.parametrize(
    ("command", "owner", "name"),
    [
        ("eval RUN", "zotune.objective.label_words.LabelWords", "judge"),
        ("train --config FILE", "zotune.load", "add_for_scope"),
        ("train --config FILE", "zotune.session", "load_tokenizer"),
        ("replay RUN", "transformers.AutoModelForCausalLM", "from_pretrained"),
        ("export RUN --to NEW", "zotune.export", "write_model"),
    ],
)
def test_outside_a_step(
    config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    owner: str,
    name: str,
) -> None:
    """Where an evaluation, an adapter, the loading or an export takes too much, too: torch's own error, code 8."""
    train(config(steps=1), Quiet())
    (tmp_path / "c.yaml").write_text(config(output_dir=tmp_path / "other").to_yaml())
    monkeypatch.setattr(f"{owner}.{name}", lambda *_, **__: _allocation())
    places = {"RUN": tmp_path / "run", "FILE": tmp_path / "c.yaml", "NEW": tmp_path / "new"}
    with pytest.raises(SystemExit) as ended:
        main([str(places.get(word, word)) for word in command.split()])
    said = capsys.readouterr().err
    assert ended.value.code == 8 and "you tried to allocate" in said and "enforce fail" not in said, said
    assert said.splitlines()[-1].startswith("zotune: DefaultCPUAllocator: can't allocate memory")
    assert "Remedy: `zotune plan`" in said and "Traceback" not in said
