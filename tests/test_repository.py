"""Checks on the repository: no unsafe calls, no paths of a machine, and a README that tells the truth."""

from __future__ import annotations

import ast
import contextlib
import io
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "zotune"
SOURCES = sorted(PACKAGE.rglob("*.py"))
README = (ROOT / "README.md").read_text(encoding="utf-8")

UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {
    "eval", "exec", "os.system", "torch.load", "torch.save",
    "yaml.load", "yaml.full_load", "yaml.unsafe_load", "yaml.load_all",
}  # fmt: skip
# Put together from parts, so that this file does not contain what it forbids.
MACHINE_PATH = re.compile(r"(?<![\w.~}-])/(?:" + "|".join(("work", "root", "tmp", "home", "Users")) + r")/")
TEXT_FOLDERS = (".ci", "bench", "docs", "examples", "recipes", "src", "tests")
BINARY = {".gguf", ".gz", ".npy", ".png", ".pyc", ".safetensors", ".zoj"}


def module_name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def text_files() -> list[Path]:
    """The text files of the project: those at the root and in the folders it has. No git needed."""
    inside = [path for folder in TEXT_FOLDERS for path in (ROOT / folder).rglob("*")]
    built = {"__pycache__", "_build"}
    return [
        path
        for path in (*ROOT.iterdir(), *inside)
        # In a worktree .git is a file, which says where the repository lies.
        if path.is_file() and path.name != ".git" and path.suffix not in BINARY and not built & set(path.parts)
    ]


def blocks(language: str) -> list[str]:
    """The fenced blocks of the README in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def unsafe(tree: ast.Module) -> list[str]:
    """Imports and calls that can run code found in a file, or an unsandboxed shell, as "line: what"."""
    found = []
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        if any(name.split(".")[0] in UNSAFE_MODULES or name in UNSAFE_CALLS for name in names):
            found.append(f"{node.lineno}: import {', '.join(names)}")
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            flags = {word.arg for word in node.keywords if ast.unparse(word.value) == "True"}
            if called in UNSAFE_CALLS or flags & {"allow_pickle", "shell"}:
                found.append(f"{node.lineno}: {called}")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_source_does_not_unpickle_or_evaluate(path: Path) -> None:
    """No module of the package loads a format that can run code, or evaluates text."""
    assert unsafe(ast.parse(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from torch import load",
        "import torch\ntorch.load('x')",
        "import yaml\nyaml.load('x', Loader)",
        "import numpy\nnumpy.load('x', allow_pickle=True)",
        "eval('1')",
    ],
)
def test_unsafe_source_is_found(source: str) -> None:
    """The check above does find what it looks for."""
    assert unsafe(ast.parse(source)) != []


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_source_has_a_docstring(path: Path) -> None:
    """Every module says in its docstring what it is for."""
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", text_files(), ids=module_name)
def test_text_names_no_path_of_a_machine(path: Path) -> None:
    """No file names an absolute path that exists on its author's machine only."""
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [f"{number}: {line}" for number, line in enumerate(lines, 1) if MACHINE_PATH.search(line)] == []


def test_nothing_else_is_kept() -> None:
    """Folders that a run or a test left behind are not part of the project."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    folders = {name.partition("/")[0] for name in listed.stdout.splitlines() if "/" in name}
    assert folders <= set(TEXT_FOLDERS)


def test_changelog_has_an_unreleased_section() -> None:
    """The changelog exists and has a place for the next change."""
    assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_version_is_the_same_everywhere() -> None:
    """The package and the project file agree on the version."""
    import zotune

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert zotune.__version__ == project["version"]


def test_dependencies_have_lower_bounds_only() -> None:
    """No dependency is pinned or capped in the project file: pins live in constraints.txt."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    wanted = [*project["dependencies"], *(name for extra in extras for name in extra)]
    assert [name for name in wanted if re.search(r"[<=~!]=?(?<!>=)\s*\d", name)] == []


def test_import_needs_torch_numpy_and_safetensors_only() -> None:
    """`import zotune` loads none of the libraries that only the command line and the data code use."""
    others = ("transformers", "pydantic", "typer", "rich", "yaml", "jinja2", "huggingface_hub", "peft")
    program = f"import sys, zotune; print([name for name in {others} if name in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


def test_readme_python_snippets_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The README's Python blocks run from top to bottom, as one program."""
    monkeypatch.chdir(tmp_path)
    snippets = blocks("python")
    assert snippets
    namespace: dict[str, object] = {"__name__": "readme"}
    with torch.random.fork_rng(), contextlib.redirect_stdout(io.StringIO()):
        for number, snippet in enumerate(snippets, 1):
            exec(compile(snippet, f"README.md, Python block {number}", "exec"), namespace)


def readme_commands() -> list[tuple[str, list[str]]]:
    """Each `zotune` command line in the README as (verb, flags)."""
    lines = [line for block in blocks("sh") for line in block.replace("\\\n", " ").splitlines()]
    commands = [line.split("#")[0].split() for line in lines if line.startswith("zotune ")]
    return [(words[1], [word for word in words if word.startswith("--")]) for words in commands]


@pytest.mark.parametrize(("verb", "flags"), readme_commands(), ids=lambda value: str(value)[:12])
def test_readme_commands_exist(verb: str, flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command in the README is a command of the program and takes the flags shown."""
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.setenv("NO_COLOR", "1")
    command = [sys.executable, "-m", "zotune", verb, "--help"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    text = ended.stdout + ended.stderr
    assert ended.returncode == 0, text
    assert [flag for flag in flags if not re.search(rf"{flag}\b", text)] == []


def test_readme_tree_is_the_tree() -> None:
    """The README's file tree names every module and folder of the package, and nothing else."""
    tree = blocks("")[-1]
    named = set(re.findall(r"^  ([\w.]+)/?(?= )", tree, re.MULTILINE))
    there = {
        path.name for path in PACKAGE.iterdir() if not path.name.startswith(("_", ".")) and path.name != "py.typed"
    }
    assert named == there


def test_every_module_has_its_test_file() -> None:
    """The tests mirror the sources: `src/zotune/a/b.py` has `tests/a/test_b.py`."""
    modules = [path.relative_to(PACKAGE) for path in SOURCES if path.stem not in ("__init__", "__main__")]
    wanted = {path.as_posix(): ROOT / "tests" / path.parent / f"test_{path.name}" for path in modules}
    assert wanted and [module for module, test in wanted.items() if not test.is_file()] == []
