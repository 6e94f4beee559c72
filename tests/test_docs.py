"""The documentation is true: every command and every Python block of docs/ runs, page by page, in a folder of its own.

Commands run shortened (`--steps 3 --threads 1`), on a tiny model that lies there as MODEL. A code block with a caption
is a file of that name. A page may speak of a run in `runs/x` and its base `model` as if they were there: then they are.
What cannot run in a test stands in NOT_RUN.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from tests.documentation import MACHINE, blocks, commands, fill, shortened
from tests.tiny import save_tiny

from zotune.cli import main
from zotune.cli.app import app
from zotune.cli.options import values_of
from zotune.config import TrainConfig
from zotune.data.files import SUFFIXES
from zotune.engines.vllm import installed
from zotune.load import load_model
from zotune.resolve import resolve
from zotune.train import train
from zotune.watch import Quiet

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = sorted(page for page in DOCS.glob("*.md") if page.stem != "adding-a-method")  # which has a test file of its own
# Installs, needs an index, the hub, a GPU or Ray, or measures the machine; each has tests of its own.
NOT_RUN = ("pip install", "python -m pytest", "python bench/", "zotune demo", "zotune doctor", "zotune pool")
FROM_THE_HUB = ("--task", "ORG/NAME")


def run_script(file: str) -> None:
    """A script for torchrun, as its only process."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    alone = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    subprocess.run([sys.executable, file], check=True, env=os.environ | alone)


@pytest.fixture
def place(tmp_path: Path, tiny: Callable[[str], Path], movies: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model and rows, under the names that the pages use."""
    fill(tmp_path, tiny, movies)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("zotune.plan.calibrate", lambda *_: MACHINE)
    return tmp_path


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT reading a model of transformers
@pytest.mark.parametrize(
    "page",
    [
        # The imports of vLLM and its libraries warn, and so does a socket that it leaves to the garbage collector.
        pytest.param(page, marks=[pytest.mark.filterwarnings("ignore")] if page.stem == "serving" else [])
        for page in PAGES
        if blocks(page)
    ],
    ids=lambda page: page.name,
)
def test_page_runs(
    page: Path, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files, commands and Python of a page, in their order."""
    if "--quantize" in page.read_text(encoding="utf-8") and not (find_spec("torchao") and find_spec("bitsandbytes")):
        pytest.skip("torchao or bitsandbytes is not installed: pip install 'zotune[quant]'")
    if "--scorer vllm" in page.read_text(encoding="utf-8"):
        if not installed():
            pytest.skip("vLLM is not installed: pip install 'zotune[vllm]'")
        save_tiny("llama", place / "MODEL", hidden_size=64)  # heads of 32 numbers are the least that vLLM takes
        monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    namespace: dict[str, Any] = {"__name__": page.stem}
    threads, ran = torch.get_num_threads(), 0
    try:
        if "runs/x/" in page.read_text(encoding="utf-8"):
            settings = TrainConfig(
                model="MODEL", train=Path("train.jsonl"), steps=2, threads=1, output_dir=Path("runs/x")
            )
            train(settings, Quiet())
            namespace["model"] = load_model(settings)
        for block in blocks(page):
            if block["file"]:
                (place / block["file"]).write_text(block["text"].lstrip("\n"))
            elif block["kind"] == "python":
                with torch.random.fork_rng(), contextlib.redirect_stdout(io.StringIO()):
                    exec(compile(block["text"], page.name, "exec"), namespace)
                ran += 1
            else:
                for words in commands(block["text"]):
                    if " ".join(words).startswith(NOT_RUN) or set(FROM_THE_HUB) & set(words):
                        continue
                    if words[0] == "torchrun":
                        run_script(words[-1])
                        continue
                    with pytest.raises(SystemExit) as ended:
                        main(shortened(words))
                    assert ended.value.code == 0, (words, capsys.readouterr().err)
                    ran += 1
    finally:
        torch.set_num_threads(threads)
    assert ran or any(word in page.read_text(encoding="utf-8") for word in FROM_THE_HUB)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_options_are_there(page: Path) -> None:
    """Every command of a page has the options that the page gives it, also where it cannot run here."""
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for block in blocks(page):
        for words in commands(block["text"]) if block["kind"] == "sh" else ():
            if words[0] != "zotune":
                continue
            given = known[words[1]].make_context(words[1], words[2:]).params
            if words[1] == "train" and given.pop("config") is None:
                del given["as_json"]
                resolve(values_of({name: value for name, value in given.items() if value}))


def test_every_block_of_code_is_looked_at() -> None:
    """No page hides a command or Python in a fence that the test above does not see."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for language in ("sh", "bash", "console", "shell", "python", "py", "pycon"):
            fences = len(re.findall(rf"^```{language}$", text, re.MULTILINE))
            assert fences == sum(block["kind"] == language for block in blocks(page)), (page.name, language)


def test_pages_of_rows_name_every_kind_of_file() -> None:
    """Those that list what rows may come from leave none out."""
    for name in ("index.md", "own-data.md", "tasks.md"):
        text = (DOCS / name).read_text(encoding="utf-8")
        assert [suffix for suffix in SUFFIXES if f"`{suffix}`" not in text] == [], name


def test_links_lead_somewhere() -> None:
    """Pages and pictures that a page names are there."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        named = re.findall(r"\]\(([\w./-]+)\)", text) + re.findall(r"\{image\} (\S+)", text)
        assert [name for name in named if not (DOCS / name).exists()] == [], page.name
