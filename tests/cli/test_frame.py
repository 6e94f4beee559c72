"""What all commands share: stdout is for JSON, errors are one line, signals end with their code."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from zotune import errors
from zotune.cli import main
from zotune.journal import Journal
from zotune.versions import Old

STOPPED = """
import sys
from pathlib import Path
from types import ModuleType

methods, train = ModuleType("zotune.methods"), ModuleType("zotune.train")
methods.table = lambda: [{"name": "mezo"}]
methods.accepts = lambda name: set()
sys.modules["zotune.methods"], sys.modules["zotune.train"] = methods, train

def body(config, watch, group=None):
    from zotune.journal import Journal
    from zotune.run import RunFolder
    import time
    with RunFolder.create(config.output_dir, config.to_yaml()) as folder:
        if config.steps:
            Journal.create(folder.paths.journal, {}).close()
        print("working", flush=True)
        time.sleep(60)

train.train = body
from zotune.cli import main
main(sys.argv[1:])
"""


def result(*arguments: Any, **named: Any) -> dict[str, Any]:
    """A command's result; a library prints meanwhile and the package logs."""
    print("a library talks")
    logging.getLogger("zotune.data").info("3 rows were cut")
    return {"steps": 3, "loss": float("nan"), "run": Path("x")}


def test_stdout_holds_one_json_object(cli: Any, fakes: Any, run_folder: Path) -> None:
    """With --json stdout is one line; whatever is printed meanwhile goes to stderr."""
    fakes.results["resume"] = result
    outcome = cli("resume", run_folder, "--json")
    assert outcome.code == 0
    assert outcome.stdout.count("\n") == 1
    assert json.loads(outcome.stdout) == {"steps": 3, "loss": "nan", "run": "x"}
    assert outcome.stderr == "a library talks\n3 rows were cut\n"


def test_words_of_a_result_go_to_stdout(cli: Any, fakes: Any, run_folder: Path) -> None:
    """Without --json the result is said in words, a NaN too; whatever is printed meanwhile goes to stderr."""
    fakes.results["replay"] = result
    outcome = cli("replay", run_folder)
    assert (outcome.code, outcome.stdout) == (0, "steps  3\nloss   nan\nrun    x\n")
    assert outcome.stderr == "a library talks\n3 rows were cut\n"


@pytest.mark.parametrize(
    "error",
    [
        errors.ConfigError,
        errors.DataError,
        errors.RunError,
        errors.JournalError,
        errors.NonFiniteLoss,
        errors.UserError,
    ],
)
def test_user_errors_are_one_line(cli: Any, fakes: Any, run_folder: Path, error: type[errors.UserError]) -> None:
    """Each user error is one line, no traceback, with its own exit code."""
    fakes.results["resume"] = error("the thing is wrong.\nRemedy: mend it.")
    outcome = cli("resume", run_folder)
    assert outcome.code == error.exit_code
    assert (outcome.stdout, outcome.stderr) == ("", "zotune: the thing is wrong. Remedy: mend it.\n")
    outcome = cli("resume", run_folder, "--json")
    assert outcome.code == error.exit_code
    assert json.loads(outcome.stdout.splitlines()[-1]) == {"error": "the thing is wrong.\nRemedy: mend it."}


def test_a_bug_keeps_its_traceback(fakes: Any, run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is not the user's error is not dressed as one; --json still ends with an object."""
    fakes.results["resume"] = ZeroDivisionError("bug")
    with pytest.raises(ZeroDivisionError):
        main(["resume", str(run_folder), "--json"])
    assert json.loads(capsys.readouterr().out) == {"error": "ZeroDivisionError: bug"}


def test_an_old_library_is_named(cli: Any, fakes: Any, run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a library lacks because it is too old is no bug of ours: one line, and what to install."""
    old = "transformers 4.51.3 is installed, and zotune needs 5 or newer. Remedy: pip install -U 'transformers>=5'."
    monkeypatch.setattr("zotune.versions.outdated", lambda extras=True: [Old("transformers", "4.51.3", "5")])
    fakes.results["resume"] = AttributeError("module 'transformers' has no attribute 'x'")
    outcome = cli("resume", run_folder)
    assert outcome.code == 2
    assert outcome.stderr == f"zotune: AttributeError: module 'transformers' has no attribute 'x'. {old}\n"


def test_ctrl_c_in_process(cli: Any, fakes: Any, run_folder: Path) -> None:
    """Ctrl-C gives 130 and the command that continues; the handlers of before are back."""
    before = signal.getsignal(signal.SIGTERM), logging.getLogger("zotune").handlers[:]
    fakes.results["resume"] = KeyboardInterrupt()
    outcome = cli("resume", run_folder, "--json")
    assert outcome.code == 130
    assert f"continue with `zotune resume {run_folder}`" in outcome.stderr
    assert "interrupted" in json.loads(outcome.stdout)["error"]
    assert (signal.getsignal(signal.SIGTERM), logging.getLogger("zotune").handlers[:]) == before


def test_ctrl_c_in_a_command_that_writes_no_run(cli: Any, fakes: Any) -> None:
    """A command without a run folder only says that it can be started again."""
    fakes.results["table"] = lambda: (_ for _ in ()).throw(KeyboardInterrupt())
    outcome = cli("methods")
    assert (outcome.code, outcome.stderr) == (130, "zotune: interrupted. Remedy: start the command again.\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("begun", [True, False])
def test_signals(tmp_path: Path, number: signal.Signals, code: int, begun: bool) -> None:
    """A signal ends the process with its code, gives the lock back and says how to go on."""
    run = tmp_path / "a run"
    flags = [
        "--model",
        "m",
        "--train",
        "t.jsonl",
        "--output-dir",
        str(run),
        "--steps",
        str(int(begun)),
        "--json",
    ]
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPED, "train", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert process.stderr is not None and process.stderr.readline() == "working\n"
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == code
    assert "Traceback" not in stderr and stderr.count("\n") == 1
    assert (f"zotune resume '{run}'" in stderr) == begun
    assert list(json.loads(stdout)) == ["error"]
    assert not (run / "lock").exists()
    if begun:
        Journal.append_to(run / "journal.zoj").close()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_in_a_finaliser(
    cli: Any, fakes: Any, run_folder: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    """Python drops what is raised while an object is finalised: the run still ends, at its next step."""
    dropped: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: dropped.append(type(what.exc_value).__name__))

    class Last:
        def __del__(self) -> None:
            os.kill(os.getpid(), number)
            sum(range(1000))  # the handler runs here

    def resume(run: Path, watch: Any, **named: Any) -> dict[str, Any]:
        last = Last()
        del last
        watch.step(1, 9, 0.5, 0.1, {})
        return {"went": "on"}

    fakes.results["resume"] = resume
    outcome = cli("resume", run_folder, "--json")
    assert len(dropped) == 1 and outcome.code == code
    assert "zotune resume" in json.loads(outcome.stdout)["error"]


@pytest.mark.parametrize("as_json", [True, False])
def test_a_reader_that_is_gone(as_json: bool) -> None:
    """`zotune ... | head -0` ends without a traceback, in words as in JSON."""
    read, write = os.pipe()
    os.close(read)
    script = f"from zotune.cli.frame import execute\nexecute(lambda session: {{'a': 1}}, {as_json})"
    done = subprocess.run([sys.executable, "-c", script], stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("error", ["memory", "torch"])
def test_out_of_memory_is_one_line(cli: Any, fakes: Any, run_folder: Path, error: str) -> None:
    """Exit code 8, the library's own first line, and what to do; no traceback."""
    import torch

    kind = MemoryError if error == "memory" else torch.OutOfMemoryError
    fakes.results["resume"] = kind("tried to allocate 20 GiB.\nmore")
    outcome = cli("resume", run_folder, "--json")
    assert outcome.code == 8 and outcome.stderr.count("\n") == 1
    assert "tried to allocate 20 GiB. No recorded step is lost. Remedy: `zotune plan`" in outcome.stderr
    assert "zotune plan" in json.loads(outcome.stdout)["error"]
