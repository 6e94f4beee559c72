"""The README is true: every command and every Python block of it runs, in a folder of its own, on a tiny model.

Its names stand for something there: RUN is the run of its first command, FILE.yaml a task of lm-eval, N a step. A
command that is written with `...` gets the options of the first one.
"""

from __future__ import annotations

import contextlib
import io
import re
import shutil
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tests.documentation import MACHINE, blocks, commands, fill, shortened

from zotune.cli import main
from zotune.tune import write_values

README = Path(__file__).resolve().parents[1] / "README.md"
# Why a command does not run here; each has tests of its own.
NOT_RUN = {
    "make ": "installs", "pip install": "installs", "zotune doctor": "compiles kernels",
    "zotune pool": "needs Ray", "zotune train --train ORG/NAME": "needs the hub",
    "zotune train ... --method lozo --scope bank --scorer vllm": "needs vLLM",
}  # fmt: skip
# What a name in a command stands for.
NAMES = {"FILE": "FILE.jsonl", "N": "1", "A": "RUN", "B": "DIR"}
TASK = {
    "task": "tones", "dataset_path": "json", "training_split": "train", "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{text}} It was", "doc_to_choice": ["terrible", "great"], "doc_to_target": "label",
}  # fmt: skip
REWARD = "def score(prompts, completions, **columns):\n    return [float(len(c)) for c in completions]\n"


@pytest.fixture
def place(tmp_path: Path, tiny: Callable[[str], Path], movies: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with what the README names."""
    fill(tmp_path, tiny, movies)
    (tmp_path / "reward.py").write_text(REWARD)
    (tmp_path / "FILE.yaml").write_text(yaml.safe_dump(TASK))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("zotune.plan.calibrate", lambda *_: MACHINE)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


def said() -> list[list[str]]:
    """The README's commands."""
    return [words for block in blocks(README) if block["kind"] == "sh" for words in commands(block["text"])]


def own(words: list[str], base: list[str], number: int) -> list[str]:
    """A command with what its names stand for, and the options that `...` leaves out, in a run of its own."""
    options = {flag: value for flag, value in zip(base, base[1:], strict=False) if flag.startswith("--")}
    for flag in (word for word in words if word.startswith("--")):
        options.pop(flag, None)
    for flag, others in (("--reward", ("--label-words", "--template")), ("--task", ("--train", "--eval"))):
        if flag in words:  # which bring their own way to score
            for other in (*others, "--label-words", "--template", "--text-column", "--label-column"):
                options.pop(other, None)
    options["--output-dir"] = f"more/{number}"
    found: list[str] = []
    for word in words:
        found += [part for pair in options.items() for part in pair] if word == "..." else [NAMES.get(word, word)]
    return found


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT reading a model of transformers
def test_commands_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All of them, in their order."""
    base = next(words for words in said() if words[:2] == ["zotune", "train"])
    ran = 0
    for number, words in enumerate(said()):
        line = " ".join(words)
        if line.startswith(tuple(NOT_RUN)):
            continue
        if "--quantize" in words and not (find_spec("torchao") and find_spec("bitsandbytes")):
            continue
        words = own(words, base, number)
        if "--tasks" in words:
            words[-1] = words[-1].removeprefix("sst2,")  # which comes from the hub
        if "FILE.yaml" in words:
            words += ["--data-dir", "."]
        if words[1] == "push":
            words += ["--to", "pushed"]  # in place of the hub
        if words[1] == "compare":
            words += ["--rows", "zero-shot"]  # each row is a process of its own
        if "--offload" in words:
            words += ["--dtype", "auto"]
        if words[1:2] != ["diff"] and "DIR" in words:
            shutil.rmtree(place / "DIR", ignore_errors=True)
        # An undone step is made again, as a run wants that is to be compared with another.
        for each in (shortened(words), *([["resume", "RUN"]] if words[1] == "undo" else [])):
            with pytest.raises(SystemExit) as ended:
                main(each)
            assert ended.value.code == 0, (each, capsys.readouterr().err)
        ran += 1
        if words[1] == "init":  # what a user would fill in
            file = place / "run.yaml"
            text = re.sub(r"^model: .*$", "model: MODEL", file.read_text(), flags=re.MULTILINE)
            more = "eval: test.jsonl\nlabel_words: [terrible, great]\ntemplate: '{{ text }} It was'\nsteps: 3\n"
            file.write_text(text + more)
            write_values(file, {"lr": 1e-3})
    assert ran >= 28


def test_python_runs(place: Path) -> None:
    """Its blocks, one after the other, as one script."""
    namespace: dict[str, Any] = {"__name__": "readme"}
    found = [block["text"] for block in blocks(README) if block["kind"] == "python"]
    assert len(found) >= 4
    with torch.random.fork_rng(), contextlib.redirect_stdout(io.StringIO()):
        for text in found:
            exec(compile(text, "README.md", "exec"), namespace)


def test_nothing_is_left_out_in_silence() -> None:
    """What is not run is in the README, and no fence hides from this file."""
    lines = [" ".join(words) for words in said()]
    assert [start for start in NOT_RUN if not any(line.startswith(start) for line in lines)] == []
    text = README.read_text(encoding="utf-8")
    for language in ("sh", "bash", "console", "shell", "python", "py", "pycon"):
        fences = len(re.findall(rf"^```{language}$", text, re.MULTILINE))
        assert fences == sum(block["kind"] == language for block in blocks(README)), language
