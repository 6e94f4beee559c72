"""Fixtures and rules every test shares. Nothing here knows a method, a model or a file format."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tests.tiny import save_rows, save_tiny

from zotune.config import TrainConfig

# A shell that starts the tests in the background has them ignore Ctrl-C, and so the processes that they interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Before anything imports transformers: no test may wait for, or depend on, the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# The tokenizers library warns when a process that used its threads forks; tests start subprocesses.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where there is no CUDA device, whatever selection was asked for."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def two_threads() -> Iterator[None]:
    """Run torch on two threads, as CI does, whatever the machine has; on one where tests run side by side."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real data sets in `../shared/data`, next to the checkout; no part of the project."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no ../shared/data next to the checkout: tests on real data are skipped")
    return folder


# --- a tiny run: model, tokenizer and rows in files, as `zotune train` takes them


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`tiny("llama")`: a folder with a random model of a few thousand weights and its tokenizer.

    Families: llama (8 blocks of it are "deep"), gpt2 (tied), bert (masked), t5 (encoder and decoder).
    """
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp("models") / family
            save_tiny(family, made[family])
        return made[family]

    return folder


@pytest.fixture(scope="session")
def movies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.jsonl (22 rows) and eval.jsonl (10 rows): text of 2 to 9 words, label 0 or 1."""
    folder = tmp_path_factory.mktemp("movies")
    save_rows(folder)
    return folder


@pytest.fixture
def config(tiny: Callable[[str], Path], movies: Path, tmp_path: Path) -> Iterator[Callable[..., TrainConfig]]:
    """`config(family="llama", **options)`: a run of seven steps in `tmp_path / "run"`, on one thread."""

    def make(family: str = "llama", **options: Any) -> TrainConfig:
        values = {
            "model": str(tiny(family)), "train": movies / "train.jsonl", "eval": movies / "eval.jsonl",
            "template": "{{ text }} it was {{ mask }}" if family == "bert" else "{{ text }} it was",
            "label_words": ["terrible", "great"], "lr": 1e-2, "eps": 1e-2, "steps": 7, "batch_size": 8, "seed": 4,
            "device": "cpu", "threads": 1, "output_dir": tmp_path / "run",
        }  # fmt: skip
        return TrainConfig(**{**values, **options})

    threads = torch.get_num_threads()
    yield make
    torch.set_num_threads(threads)


# --- a data set of the hub, without the hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], list[tuple[Any, ...]]]:
    """`hub(answer)`: a stand-in for the package datasets: notes its calls, answers (a dict by split) or raises."""

    def put(answer: Any) -> list[tuple[Any, ...]]:
        calls: list[tuple[Any, ...]] = []

        def load_dataset(path: str, name: str | None, *, split: str, revision: str | None) -> Any:
            calls.append((path, name, split, revision))
            if isinstance(answer, Exception):
                raise answer
            return answer[split] if isinstance(answer, dict) else answer

        module = ModuleType("datasets")
        module.load_dataset = load_dataset  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "datasets", module)
        return calls

    return put
