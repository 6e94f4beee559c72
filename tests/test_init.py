"""The public names: those of the table of methods, and a few more, loaded when they are asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import zotune
from zotune import methods
from zotune.methods import METHODS, Method


def test_the_names_are_those_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each factory by its own name, in `dir` and for `*`; a new row has one as well, and takes it along."""
    for row in METHODS.values():
        assert getattr(zotune, row.build.__name__) is row.build and row.build.__name__ in dir(zotune)
    given: dict[str, Any] = {}
    exec("from zotune import *", given)
    assert set(given) >= set(dir(zotune)) == set(zotune.__all__)

    def NewMeZO() -> None:  # noqa: N802
        """As factories are written."""

    with monkeypatch.context() as patch:
        patch.setitem(METHODS, "new", Method("new", NewMeZO, "1.1", "2", "none", True))
        assert zotune.NewMeZO is NewMeZO and "NewMeZO" in dir(zotune)
    assert not hasattr(zotune, "NewMeZO")


def test_the_methods_themselves_list_their_factories() -> None:
    """What type checkers read, `zotune.methods.__all__`, holds every factory of the table and no other."""
    factories = {row.build.__name__ for row in METHODS.values()}
    assert set(methods.__all__) == factories | {"METHODS", "Method", "accepts", "table"}


def test_what_is_not_there() -> None:
    """The usual error; modules of the package and dunders are not taken for methods."""
    with pytest.raises(AttributeError, match="module 'zotune' has no attribute 'Mezo'"):
        zotune.Mezo  # noqa: B018
    assert not hasattr(zotune, "__path_of_nothing__")


def test_torch_is_loaded_when_it_is_needed() -> None:
    """Neither by `import zotune` nor by a module that does without it; by the first method."""
    program = (
        "import sys, zotune; from zotune import config, errors; a = 'torch' in sys.modules; "
        "from zotune import MeZO; print(a, 'torch' in sys.modules, MeZO.__name__)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["False", "True", "MeZO"]


@pytest.mark.slow
def test_type_checkers_know_the_names(tmp_path: Path) -> None:
    """mypy sees a factory with its arguments, under both names, and no others."""
    file = tmp_path / "use.py"
    file.write_text(
        "import zotune\nfrom zotune import LoZO, Key\nfrom torch import nn\n"
        "optimizer = LoZO(nn.Linear(2, 2), rank=3)\nreveal_type(optimizer)\nreveal_type(zotune.MeZO)\nKey(0, 0)\n"
        "LoZO(nn.Linear(2, 2), rank='3')\n"
    )
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", str(file)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    lines = ended.stdout.splitlines()
    assert 'Revealed type is "zotune.optimizer.ZerothOrder"' in lines[0], ended.stdout + ended.stderr
    assert "samples_over: int | None" in lines[1], lines
    assert 'Argument "rank" to "LoZO" has incompatible type "str"' in lines[2]
