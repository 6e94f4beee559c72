"""Stand-ins for the parts behind the command line, so that its tests need no model."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from zotune.cli import main
from zotune.config import TrainConfig
from zotune.journal import Journal
from zotune.run import RunFolder


@dataclass
class Outcome:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str


# What a run comes to, as far as it is always there.
FINISHED = {
    "steps": 3,
    "seconds": 0.5,
    "forwards": 6,
    "weights_sha256": "ab" * 32,
    "journal_bytes": 800,
    "peak_memory_bytes": None,
    "run": "runs/a b",
}


@dataclass
class Fakes:
    """Stand-ins by name; each call is noted. `results` or an exception decide what they do."""

    results: dict[str, Any] = field(default_factory=dict)
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)

    def function(self, name: str) -> Callable[..., Any]:
        """A function that notes its arguments and returns or raises what `results` holds."""

        def fake(*arguments: Any, **named: Any) -> Any:
            self.calls.append((name, arguments, named))
            result = self.results.get(name, FINISHED)
            if isinstance(result, BaseException):
                raise result
            return result(*arguments, **named) if callable(result) else result

        return fake


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Fakes:
    """`zotune.train`, `zotune.revisit`, `zotune.demo.run` and `zotune.methods` replaced for one test."""
    fakes = Fakes()
    for module, names in {
        "zotune.train": ("train", "resume"),
        "zotune.revisit": ("replay", "evaluate_run", "log_rows"),
        "zotune.demo.run": ("demo",),
        "zotune.methods": ("table", "accepts"),
    }.items():
        stand_in = ModuleType(module)
        for name in names:
            setattr(stand_in, name, fakes.function(name))
        monkeypatch.setitem(sys.modules, module, stand_in)
    monkeypatch.setitem(sys.modules, "zotune.demo", ModuleType("zotune.demo"))
    row = {"arxiv": "2305.17333", "forwards_per_step": "2", "state": "none", "replayable": True}
    fakes.results["table"] = [{"name": "mezo", **row}, {"name": "lozo", **row, "replayable": False}]
    fakes.results["accepts"] = lambda method: {"law", "lr"} | ({"rank", "interval"} if method == "lozo" else set())
    return fakes


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run a command line in this process."""

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        assert isinstance(ended.value.code, int)
        return Outcome(ended.value.code, *capsys.readouterr())

    return run


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run's folder with a config and an empty journal."""
    config = "model: m\ntrain: train.jsonl\noutput_dir: run\ntemplate: '{{ text }} It was'\nlabel_words: [No, Yes]\n"
    with RunFolder.create(tmp_path / "run", config) as folder:
        Journal.create(folder.paths.journal, {}).close()
    return tmp_path / "run"


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the run of `run` is kept."""
    return tmp_path_factory.mktemp("trained") / "run"


@pytest.fixture
def run(config: Callable[..., TrainConfig], trained: Path, tmp_path: Path) -> Path:
    """A finished run of seven steps, evaluated after 3, 6 and 7, in a copy of its own; it is trained once."""
    from zotune.train import train
    from zotune.watch import Quiet

    if not trained.exists():
        train(config(snapshot_every=3, eval_every=3, output_dir=trained), Quiet())
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def last() -> Callable[[Outcome], Any]:
    """The JSON that a command printed: the only line of stdout."""

    def read(outcome: Outcome) -> Any:
        assert outcome.code == 0 and outcome.stdout.count("\n") == 1, outcome
        return json.loads(outcome.stdout)

    return read


@pytest.fixture
def refused(cli: Callable[..., Outcome], run: Path, tmp_path: Path) -> Callable[[list[str]], tuple[int, str]]:
    """`refused(words)`: the exit code and the line that was said, with a remedy; the run is as before, nothing is left.

    RUN and TO among the words stand for the run and a folder that is not there.
    """

    def check(words: list[str]) -> tuple[int, str]:
        before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        places = {"RUN": run, "TO": tmp_path / "to"}
        outcome = cli(*[places.get(word, word) for word in words], "--json")
        assert outcome.stderr.count("\n") == 1 and "Traceback" not in outcome.stderr
        assert "Remedy: " in json.loads(outcome.stdout)["error"]
        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
        assert not (tmp_path / "to").exists()
        return outcome.code, outcome.stderr

    return check
