"""Reading the documentation as a user would: its files, commands and Python blocks. For tests/test_docs.py and
tests/test_readme.py.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

from zotune.calibrate import Machine

FENCE = re.compile(
    r"^```(?:(?P<kind>sh|python)|\{code-block\} \w+\n:caption: (?P<file>\S+)\n)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_RATES = {1: 1e9, 1000: 1e10}
# In place of the minute in which a machine is measured.
MACHINE = Machine(1 << 20, 1 << 20, _RATES, _RATES, 1e-6, 1e-8, 1e-8)
# A run in a test has three steps: numbers of steps that a page names are smaller there.
_FEW = {"branch": (r"^steps=\d+$", "steps=5"), "checkout": (r"^\d+$", "2"), "undo": (r"^\d+$", "1")}


def blocks(page: Path) -> list[re.Match[str]]:
    """The fences of a page that are run or written, in their order."""
    return list(FENCE.finditer(page.read_text(encoding="utf-8")))


def commands(text: str) -> list[list[str]]:
    """The command lines of a block, as words; of one under torchrun, that of a process. `&&` parts two of them."""
    lines = text.replace("\\\n", " ").splitlines()
    found: list[list[str]] = []
    for line in lines:
        if not line.strip() or line.startswith("#"):
            continue
        each: list[str] = []
        for word in [*shlex.split(line, comments=True), "&&"]:
            if word != "&&":
                each.append(word)
                continue
            found.append(each[each.index("zotune") :] if "zotune" in each and "-m" in each else each)
            each = []
    return found


def shortened(words: list[str]) -> list[str]:
    """The arguments of a command, so that it is done in a second or two."""
    name = words[1]
    short = {"train": ["--steps", "3", "--threads", "1"], "tune": ["--directions", "2", "--threads", "1"]}
    short["compare"] = short["train"]
    said = words[1:]
    if name in _FEW:
        said = [re.sub(*_FEW[name], word) for word in said]
        said = ["2" if before == "--step" else word for before, word in zip(["", *said], said, strict=False)]
    return [*said, *short.get(name, [])]


def fill(folder: Path, tiny: Callable[[str], Path], movies: Path) -> None:
    """A model and rows under the names that the pages use."""
    for name in ("MODEL", "DIR_OR_HUB_ID"):
        shutil.copytree(tiny("llama"), folder / name)
    shutil.copy(movies / "train.jsonl", folder / "train.jsonl")
    for name in ("test.jsonl", "FILE.jsonl"):
        shutil.copy(movies / "eval.jsonl", folder / name)
