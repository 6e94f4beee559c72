"""The entry point: help without heavy imports, usage errors, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import zotune
from zotune.cli.app import NAMES, main

COMMANDS = [
    "data", "demo", "train", "resume", "eval", "replay", "log", "checkout", "undo", "branch", "verify", "diff",
    "methods", "plan", "report", "export", "ls", "cat", "init", "schema", "doctor", "tune", "compare",
    "cp", "push", "pool", "sensitive",
]  # fmt: skip


def test_commands() -> None:
    """The commands are there."""
    assert NAMES == set(COMMANDS)


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in COMMANDS)])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    """Help of every command works in a fresh process without heavy imports (typer itself uses pydantic)."""
    script = (
        "import sys\nfrom zotune.cli import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "except SystemExit as ended:\n    assert ended.code == 0, ended.code\n"
        "heavy = {'torch', 'transformers', 'numpy', 'yaml', 'jinja2', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage: zotune" in done.stdout
    if len(arguments) == 2:
        assert "--json" in done.stdout


def test_module_is_the_command() -> None:
    """`python -m zotune` works and passes the exit code on."""
    done = subprocess.run([sys.executable, "-m", "zotune", "no-such"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "zotune: No such command 'no-such'. Remedy: see `zotune --help`.\n"


def test_without_arguments_help_is_shown(cli: Any) -> None:
    """No command: the help, exit code 2."""
    outcome = cli()
    assert outcome.code == 2 and "Commands:" in outcome.stdout + outcome.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "No such command 'trian'. Did you mean 'train'. Remedy: see `zotune --help`."),
        (["resume"], "Missing argument 'RUN'. Remedy: see `zotune resume --help`."),
        (["demo", "--seed", "x"], "Invalid value for '--seed'"),
        (["train", "--learningrate", "1"], "No such option: --learningrate"),
        (["log", "a", "b"], "unexpected extra argument"),
    ],
)
def test_usage_errors_are_one_line(cli: Any, arguments: list[str], message: str) -> None:
    """A usage error is one line with the remedy and exit code 2; --json repeats it on stdout."""
    outcome = cli(*arguments)
    assert outcome.code == 2 and outcome.stdout == ""
    assert outcome.stderr.startswith("zotune: ") and outcome.stderr.count("\n") == 1
    assert message in outcome.stderr and "Remedy: see `zotune" in outcome.stderr
    as_json = cli(*arguments, "--json")
    assert as_json.code == 2
    assert as_json.stdout.count("\n") == 1 and message in json.loads(as_json.stdout)["error"]


def test_ctrl_c_before_a_command(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the command line is read is 130 without a traceback, also before there is a parser."""
    from zotune.cli import app, log

    def interrupted(*arguments: Any, **named: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(log, "execute", interrupted)
    outcome = cli("log", "run", "--json")
    assert (outcome.code, outcome.stdout, outcome.stderr) == (130, "", "")
    monkeypatch.setattr(app.typer.main.get_command(app.app).__class__, "main", interrupted)
    outcome = cli("log", "run", "--json")
    assert outcome.code == 130 and outcome.stderr == "zotune: interrupted. Remedy: start the command again.\n"
    assert json.loads(outcome.stdout) == {"error": "interrupted. Remedy: start the command again."}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script(cli: Any, shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`zotune --show-completion SHELL` prints a script that asks zotune itself, from within any shell or none."""
    monkeypatch.setattr("shellingham.detect_shell", lambda: (shell, f"/bin/{shell}"))
    outcome = cli("--show-completion", shell)
    assert outcome.code == 0 and "_ZOTUNE_COMPLETE" in outcome.stdout.upper()


@pytest.mark.parametrize(("rank", "said"), [("0", "`zotune ls` is for one process. Remedy: start"), ("1", "")])
def test_what_is_for_one_process_is_refused_under_torchrun(
    rank: str, said: str, cli: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each process would do it all; the first one says so."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)
    outcome = cli("ls", tmp_path)
    assert outcome.code == 2 and said in outcome.stderr and bool(outcome.stderr) == (rank == "0")


def test_completion_knows_commands_and_flags() -> None:
    """What a shell asks for is answered: commands, and the flags of a command."""
    import os

    for words, position, expected in (
        ("zotune re", "1", {"resume", "replay", "report"}),
        ("zotune plan --mod", "2", {"--model"}),
    ):
        env = {**os.environ, "_ZOTUNE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": position}
        done = subprocess.run(
            [sys.executable, "-c", "from zotune.cli import main; main()"],
            capture_output=True,
            text=True,
            env=env,
            check=False,
        )
        assert expected <= set(done.stdout.split()), done


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """`zotune --version` prints it and nothing else."""
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr() == (f"zotune {zotune.__version__}\n", "")
