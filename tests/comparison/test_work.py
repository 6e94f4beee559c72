"""One row: what it measures is what the part it stands for gives, and a run that was stopped goes on."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.models import one_thread as one_thread  # noqa: PLC0414 - a fixture of this module too

from zotune.baselines import first_order, in_context, linear_probe
from zotune.comparison import work
from zotune.comparison.rows import make_rows
from zotune.config import TrainConfig
from zotune.errors import RunError
from zotune.session import Session
from zotune.train import train
from zotune.watch import Quiet

Config = Callable[..., TrainConfig]
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def measured(config: TrainConfig, name: str, *settings: str) -> dict[str, Any]:
    return work.measure(make_rows(config, [name], settings)[0], Quiet())


def test_rows_are_what_they_stand_for(config: Config) -> None:
    """The figures of the baselines, called by hand on the same config."""
    shared = config()
    session = Session(shared)
    zero_shot = session.evaluate()
    assert zero_shot is not None
    expected = {
        "zero-shot": zero_shot.as_dict(),
        "in-context": in_context(session, 2).as_dict(),
        "linear-probe": linear_probe(session).as_dict(),
        "adamw": first_order(Session(shared), "adamw", 1e-2, 3).evaluation.as_dict(),
    }
    settings = {"in-context": ["in-context.demonstrations=2"], "adamw": ["adamw.lr=1e-2", "adamw.steps=3"]}
    forwards = {"zero-shot": 0, "in-context": 0, "linear-probe": 1, "adamw": 3}
    for name, want in expected.items():
        found = measured(shared, name, *settings.get(name, []))
        assert {key: found[key] for key in want} == want, name
        assert found["forwards"] == forwards[name] and found["seconds"] > 0 and found["peak_memory_bytes"] > 50e6
        assert found["row"] == name and found["eval_sha256"] == session.eval_sha256
    assert found["backwards"] == 3 and found["lr"] == 1e-2 and found["trained"] == 6736


def test_a_zeroth_order_row_is_a_run(config: Config, tmp_path: Path) -> None:
    """Its figures are those of `train` on the same options, and its folder can be read as any run."""
    found = measured(config(), "mezo")
    plain = train(config(output_dir=tmp_path / "plain"), Quiet())
    for key in ("accuracy", "loss", "low", "high"):
        assert (found[key], found[f"{key}_before"]) == (plain[f"{key}_after"], plain[f"{key}_before"])
    assert (found["lr"], found["eps"], found["steps"], found["forwards"]) == (1e-2, 1e-2, 7, 14)
    assert found["examples"] == 10 and found["trained"] == 6736 and not found["continued"]
    journals = [folder / "journal.zoj" for folder in (tmp_path / "run" / "runs" / "mezo", tmp_path / "plain")]
    assert journals[0].read_bytes()[-40:] == journals[1].read_bytes()[-40:]


class Stops:
    """Interrupts at the third step."""

    def say(self, *given: Any) -> None:
        pass

    header = eval = say

    def step(self, step: int, *given: Any) -> None:
        if step == 3:
            raise KeyboardInterrupt

    def count(self, *given: Any) -> None:
        pass


@pytest.mark.parametrize("tune", [False, True])
def test_an_interrupted_run_goes_on(config: Config, tmp_path: Path, tune: bool) -> None:
    """It ends where an undisturbed one ends, with the rate that was measured the first time; other options do not."""
    shared = config(**({"lr": None, "eps": None} if tune else {}))
    row, whole = (
        make_rows(TrainConfig(**{**shared.as_dict(), "output_dir": tmp_path / name}), ["mezo"], tune=tune)[0]
        for name in ("cut", "whole")
    )
    with pytest.raises(KeyboardInterrupt):
        work.measure(row, Stops())
    found, undisturbed = work.measure(row, Quiet()), work.measure(whole, Quiet())
    assert found["continued"] and not undisturbed["continued"]
    assert [found[key] for key in ("loss", "lr", "eps", "forwards")] == [
        undisturbed[key] for key in ("loss", "lr", "eps", "forwards")
    ]
    other = make_rows(TrainConfig(**{**shared.as_dict(), "output_dir": tmp_path / "cut", "seed": 9}), ["mezo"])[0]
    with pytest.raises(RunError, match=r"began with .*seed 4 \(now 9\).*Remedy"):
        work.measure(other, Quiet())


def test_main_writes_what_it_found(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A result, the error of a user, and any other error, each into the file that the job names."""
    shared = config()
    broken = TrainConfig(**{**shared.as_dict(), "model": str(tmp_path / "none")})
    faulty = make_rows(shared, ["linear-probe"])[0]
    monkeypatch.setattr("zotune.baselines.linear_probe", lambda session: 1 / 0)
    monkeypatch.setattr(work, "_leave_with_parent", lambda: None)
    cases = {
        "ok": make_rows(shared, ["zero-shot"])[0],
        "user": make_rows(broken, ["zero-shot"])[0],
        "bug": faulty,
    }
    found = {}
    for name, row in cases.items():
        job = {"row": {**row.as_job()}, "settings": {"x": 1}, "result": str(tmp_path / f"{name}.json")}
        monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(job, default=str) + "\n"))
        assert work.main() == 0
        found[name] = json.loads((tmp_path / f"{name}.json").read_text())
    assert found["ok"]["examples"] == 10 and found["ok"]["settings"] == {"x": 1}
    assert (
        "cannot be loaded" in found["user"]["error"] and found["bug"]["error"] == "ZeroDivisionError: division by zero"
    )
