"""A tiny model that can be packed, and runs on it. Tests of a library skip where it is missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tests.tiny import save_tiny

from zotune.config import TrainConfig
from zotune.session import Session
from zotune.train import resume, train
from zotune.watch import Console, Quiet


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of two blocks whose rows hold whole groups of every format."""
    folder = tmp_path_factory.mktemp("models") / "wide"
    save_tiny("llama", folder, hidden_size=64, intermediate_size=128, num_hidden_layers=2)
    return folder


@pytest.fixture
def packed(config: Callable[..., TrainConfig], wide: Path) -> Callable[..., TrainConfig]:
    """`packed(kind, **options)`: a run on `wide` with its linear layers packed; skips where the library is missing."""

    def make(kind: str, **options: Any) -> TrainConfig:
        for library in ("accelerate", "bitsandbytes" if kind in ("nf4", "llm_int8") else "torchao"):
            if find_spec(library) is None:
                pytest.skip(f"{library} is not installed: pip install 'zotune[quant]'")
        dtype = {"dtype": "float16"} if kind == "llm_int8" else {}
        return config(**{"model": str(wide), "quantize": kind, **dtype, **options})

    return make


@pytest.fixture
def disturbed(monkeypatch: pytest.MonkeyPatch) -> Callable[[TrainConfig], dict[str, Any]]:
    """`disturbed(config)`: the result of a run that was stopped twice, after a look that it left the same bytes."""

    def run(settings: TrainConfig) -> dict[str, Any]:
        whole = train(replace(settings, output_dir=settings.output_dir.parent / "whole"), Quiet())
        step = Session.step
        for call, stop in ((lambda: train(settings, Quiet()), 3), (lambda: resume(settings.output_dir, Quiet()), 6)):

            def stopping(session: Session, stop: int = stop) -> None:
                if session.optimizer.steps == stop:
                    raise KeyboardInterrupt
                step(session)

            monkeypatch.setattr(Session, "step", stopping)
            with pytest.raises(KeyboardInterrupt):
                call()
        monkeypatch.setattr(Session, "step", step)
        result = resume(settings.output_dir, Quiet())
        for name in ("journal.zoj", "metrics.jsonl"):
            assert (settings.output_dir / name).read_bytes() == (Path(whole["run"]) / name).read_bytes()
        assert result["weights_sha256"] == whole["weights_sha256"]
        return result

    return run


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[[TrainConfig], str]:
    """`said(config)`: what a run of it prints."""

    def run(settings: TrainConfig) -> str:
        train(settings, Console())
        found = capsys.readouterr()
        return found.out + found.err

    return run
