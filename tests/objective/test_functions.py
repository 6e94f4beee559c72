"""Functions by name: found or refused with a sentence; whatever a call does ends in one, too."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest

from zotune.errors import ConfigError, FunctionError
from zotune.objective.functions import Named, call, check_takes, find, given

SOURCE = '''
from __future__ import annotations
from dataclasses import dataclass

@dataclass
class Kept:
    """Dataclasses ask sys.modules for their module."""
    limit: "int" = 3

def plain(prompts, completions, **columns):
    return [len(each) for each in completions]

def narrow(completions):
    return [Kept().limit] * len(completions)

async def later(completions):
    return [1.0] * len(completions)

class Group:
    @staticmethod
    def inside(completions):
        return [0.0] * len(completions)

NUMBER = 3
'''
VALUES = {"prompts": ["p", "q"], "completions": ["a", "bcd"], "label": [0, 1]}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of functions."""
    path = tmp_path / "own.py"
    path.write_text(SOURCE)
    return path


@pytest.mark.parametrize(
    ("name", "returns"), [("plain", [1, 3]), ("narrow", [3, 3]), ("later", [1.0, 1.0]), ("Group.inside", [0.0, 0.0])]
)
def test_from_a_file(file: Path, name: str, returns: list[float]) -> None:
    """Each gets what its signature takes; a coroutine is awaited; nothing else of the session is touched."""
    before = list(sys.path)
    found = find(f"{file}:{name}")
    assert call(found, 5, "at step 0", VALUES) == returns
    assert found.short == f"own.py:{name}" and len(found.sha256) == 64 and sys.path == before
    assert "own" not in sys.modules


def test_from_a_module() -> None:
    """With a colon, as entry points are written, or with a dot, as TRL has it."""
    import statistics

    assert find("statistics:fmean").function is statistics.fmean is find("statistics.fmean").function


def test_passed_from_python(file: Path) -> None:
    """A function, a lambda and an object with __call__ have a name and, where there is a file, its hash."""

    class Scorer:
        def __call__(self, completions: list[str]) -> list[float]:
            return [0.5] * len(completions)

    found = given(find(f"{file}:plain").function)
    assert found.name.endswith(":plain") and len(found.sha256) == 64
    assert call(given(lambda completions: completions), 5, "", VALUES) == ["a", "bcd"]
    assert "Scorer" in given(Scorer()).name and call(given(Scorer()), 5, "", VALUES) == [0.5, 0.5]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("{}:nothing", "has no function 'nothing'; it has .*plain.*narrow"),
        ("{}:NUMBER", "has no function 'NUMBER'"),
        ("{}", "names no function. Remedy: write FILE.py:function"),
        ("{}.gone.py:f", "is no file"),
        ("no_such_package.module:f", "cannot be imported: ModuleNotFoundError.*must be installed"),
        ("word", "names no function"),
        (":f", "names no function"),
        ("", "names no function"),
    ],
)
def test_not_found(file: Path, name: str, says: str) -> None:
    """One sentence that names what was given."""
    with pytest.raises(ConfigError, match=says) as caught:
        find(name.format(file))
    assert "Remedy: " in str(caught.value)


@pytest.mark.parametrize("source", ["1/0", "def f(:", "raise SystemExit(3)", "import sys\nsys.exit()"])
def test_a_file_that_cannot_be_imported(tmp_path: Path, source: str) -> None:
    """It is named, nothing of it stays in sys.modules, and it does not end the process."""
    path, before = tmp_path / "bad.py", set(sys.modules)
    path.write_text(source)
    with pytest.raises(ConfigError, match="bad.py:f cannot be imported: .*Remedy"):
        find(f"{path}:f")
    assert {name for name in set(sys.modules) - before if name.startswith("zotune_user")} == set()


def _raises(completions: Any) -> Any:
    raise ValueError("no such\nthing")


def _exits(completions: Any) -> Any:
    sys.exit(1)


def _runtime(completions: Any) -> Any:
    raise RuntimeError


@pytest.mark.parametrize(
    ("function", "says"),
    [(_raises, "ValueError: no such .line"), (_exits, "SystemExit: 1"), (_runtime, "RuntimeError: no message")],
)
def test_a_function_that_raises(function: Any, says: str) -> None:
    """The function, the step, the error, its line and what to do."""
    with pytest.raises(FunctionError, match=f"r.py:f failed at step 7: {says}.*Nothing was.*Remedy: correct") as caught:
        call(Named("r.py:f", function), 5, "at step 7", VALUES)
    assert "test_functions.py" in str(caught.value) and "\n" not in str(caught.value)


def test_a_function_that_hangs() -> None:
    """It is given up after its time."""
    begun = time.monotonic()
    with pytest.raises(FunctionError, match="r.py:f did not return within 0.2 s at step 3.*reward_timeout"):
        call(Named("r.py:f", lambda completions: time.sleep(1.5)), 0.2, "at step 3", VALUES)
    assert time.monotonic() - begun < 1.4


def test_arguments_that_nothing_gives() -> None:
    """A missing column is named before anything is generated; defaults and **names need nothing."""

    def needs(prompts: Any, completions: Any, answer: Any, level: int = 3, **rest: Any) -> None: ...

    def by_place(completions: Any, /) -> None: ...

    known = ["prompts", "completions", "answer"]
    check_takes(given(needs), known)
    check_takes(given(print), known)
    with pytest.raises(ConfigError, match="needs an argument 'answer', which no column gives; known are prompts, .*Re"):
        check_takes(given(needs), known[:2])
    with pytest.raises(ConfigError, match="takes 'completions' by position.*Remedy: remove the /"):
        check_takes(given(by_place), known)
