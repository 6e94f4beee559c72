"""Fixtures and rules every test shares. Nothing here knows a method, a model or a file format."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

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
    """Run torch on two threads, as CI does, whatever the machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
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
