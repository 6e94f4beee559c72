"""A model's folder from anywhere: safetensors and nothing else, in files of its own."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from zotune.checkpoint import check_checkpoint, stored_tensors
from zotune.config import TrainConfig
from zotune.errors import UserError
from zotune.load import load_model, load_tokenizer, meta_model, quiet
from zotune.weights import base_sha256

Config = Callable[..., TrainConfig]


@pytest.fixture
def model(tiny: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of a model that a test may damage."""
    return Path(shutil.copytree(tiny("llama"), tmp_path / "m"))


@pytest.fixture
def sharded(config: Config, model: Path) -> Path:
    """The same in several files with an index."""
    whole = load_model(config(model=str(model)))
    (model / "model.safetensors").unlink()
    with quiet():
        whole.save_pretrained(model, max_shard_size="4KB")  # type: ignore[operator]
    return model


@pytest.fixture
def no_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.load fails the test, whoever calls it."""

    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("torch.load was reached")

    monkeypatch.setattr(torch, "load", load)


def index_of(model: Path) -> Path:
    return model / "model.safetensors.index.json"


def shards(model: Path) -> list[str]:
    return sorted(set(json.loads(index_of(model).read_bytes())["weight_map"].values()))


def rename(model: Path, name: str) -> None:
    """Let the index name another file for its first shard."""
    found = json.loads(index_of(model).read_bytes())
    first = shards(model)[0]
    found["weight_map"] = {key: name if value == first else value for key, value in found["weight_map"].items()}
    index_of(model).write_text(json.dumps(found))


def pickled(model: Path) -> None:
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()


def setting(model: Path, **values: Any) -> None:
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | values))


def refused(config: Config, model: Path, said: str) -> None:
    """By all that load: the tokenizer, the shapes and the weights; the first two unless it is of weights alone."""
    settings = config(model=str(model))
    with pytest.raises(UserError, match=f"{said}.*Remedy: "):
        load_model(settings)
    if "pickle" not in said:
        for load in (load_tokenizer, meta_model):
            with pytest.raises(UserError, match=f"{said}.*Remedy: "):
                load(settings)


@pytest.mark.usefixtures("no_pickle")
@pytest.mark.parametrize("beside", [[], ["x.pt"], ["pytorch_model.bin.index.json"]])
def test_weights_in_a_pickle(config: Config, model: Path, beside: list[str]) -> None:
    """Refused with the way to convert them; beside safetensors they are not read."""
    torch.save({}, model / "pytorch_model.bin")
    assert base_sha256(load_model(config(model=str(model)))) == base_sha256(load_model(config()))
    pickled(model)
    for name in beside:
        (model / name).write_text("{}")
    refused(config, model, "has its weights in pytorch_model.bin, a pickle, which can run code")
    load_tokenizer(config(model=str(model)))  # what names no weights is not concerned


@pytest.mark.usefixtures("no_pickle")
@pytest.mark.parametrize("name", ["evil.bin", "config.json", "weights.pt", "x.safetensors.bin"])
def test_an_index_of_other_files(config: Config, sharded: Path, name: str) -> None:
    """Each shard is safetensors by its name, which decides how it is read."""
    torch.save({"a": torch.zeros(1)}, sharded / "evil.bin")
    rename(sharded, name)
    refused(config, sharded, f"index.json names the file '{name}', which is not safetensors")


@pytest.mark.usefixtures("no_pickle")
@pytest.mark.parametrize("name", ["../m.safetensors", "adapter_model.bin", "/a/model.safetensors", 3])
def test_a_config_that_names_other_files(config: Config, model: Path, name: Any) -> None:
    """`transformers_weights` may be safetensors beside it alone."""
    setting(model, transformers_weights=name)
    refused(config, model, f"config.json names the file {name!r}, ")


@pytest.mark.usefixtures("no_pickle")
def test_an_adapter_is_no_model(config: Config, model: Path) -> None:
    """It would lead to the model that it names, and may be a pickle."""
    (model / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "/etc"}))
    torch.save({}, model / "adapter_model.bin")
    refused(config, model, "holds an adapter .adapter_config.json., which names another model")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "generation_config.json", "x"])
@pytest.mark.parametrize("kind", ["pipe", "link", "nowhere", "loop", "device"])
def test_files_that_are_none(config: Config, model: Path, tmp_path: Path, name: str, kind: str) -> None:
    """A pipe is never opened, a link that leads out of the folder never followed."""
    path = model / name
    path.touch()
    path.rename(tmp_path / "outside")
    if kind == "pipe":
        os.mkfifo(path)
    else:
        places = {"link": tmp_path / "outside", "nowhere": "gone", "loop": name, "device": "/dev/zero"}
        path.symlink_to(places[kind])
    said = {
        "pipe": "is not a plain file",
        "link": "is a link out of its folder",
        "device": "is a link out of its folder",
    }
    refused(config, model, f"m/{name} {said.get(kind, 'is a link that leads nowhere')}")


@pytest.mark.parametrize("which", ["shard", "index"])
@pytest.mark.parametrize("kind", ["pipe", "link"])
def test_shards_that_are_none(config: Config, sharded: Path, tmp_path: Path, which: str, kind: str) -> None:
    """Of a sharded checkpoint each file is looked at."""
    path = sharded / shards(sharded)[0] if which == "shard" else index_of(sharded)
    path.rename(tmp_path / "outside")
    os.mkfifo(path) if kind == "pipe" else path.symlink_to(tmp_path / "outside")
    refused(config, sharded, "is not a plain file" if kind == "pipe" else "is a link out of its folder")


def cache(model: Path, root: Path, link: bool = True) -> Path:
    """The folder as the hub's library lays it out in its cache: links from a snapshot into blobs."""
    repository = root / "models--me--it"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    (repository / "blobs").mkdir()
    for number, path in enumerate(sorted(model.iterdir())):
        if link:
            shutil.copyfile(path, repository / "blobs" / f"{number}")
            (snapshot / path.name).symlink_to(f"../../blobs/{number}")
        else:
            shutil.copyfile(path, snapshot / path.name)
    return snapshot


@pytest.mark.parametrize("link", [True, False])
def test_the_hubs_cache(config: Config, sharded: Path, tmp_path: Path, link: bool) -> None:
    """Its links into its own blobs are followed, elsewhere they are not; without links (Windows) it is a folder."""
    snapshot = cache(sharded, tmp_path / "hub", link)
    found = load_model(config(model=str(snapshot)))
    assert base_sha256(found) == base_sha256(load_model(config()))
    load_tokenizer(config(model=str(snapshot)))
    (tmp_path / "hub" / "escaped").write_bytes(b"")
    path = snapshot / shards(snapshot)[0]
    path.unlink()
    path.symlink_to(tmp_path / "hub" / "escaped")
    refused(config, snapshot, "is a link out of its folder")


def test_an_id_in_the_hubs_cache(
    config: Config, sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An id is looked at like a folder: a real checkpoint loads, an index that leads elsewhere is refused."""
    import huggingface_hub.constants as constants
    import transformers.utils.hub as hub

    snapshot = cache(sharded, tmp_path / "hub")
    for place in (constants, hub):
        for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
            if hasattr(place, name):
                monkeypatch.setattr(place, name, str(tmp_path / "hub"))
    assert base_sha256(load_model(config(model="me/it"))) == base_sha256(load_model(config()))
    data = index_of(snapshot).read_bytes()
    index_of(snapshot).unlink()
    index_of(snapshot).write_bytes(data)
    rename(snapshot, "../../../escaped.safetensors")
    refused(config, Path("me/it"), "names the file '../../../escaped.safetensors', outside its folder")
    check_checkpoint("nobody/nothing")  # not there: for transformers to say


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, over 10000"),
        ({"text": {"n_layer": 10**5}}, "n_layer is 100000, over 10000"),
        ({"depths": [2, 10**6]}, "depths is 1000000"),
        ({"num_hidden_layers": 5000, "num_experts": 5000}, "5000 layers of 5000 experts are no model"),
    ],
)
def test_counts_that_no_model_has(config: Config, model: Path, values: dict[str, Any], said: str) -> None:
    """Refused before transformers makes the modules one by one."""
    setting(model, **values)
    refused(config, model, said)


def test_sizes_of_real_models_pass(model: Path) -> None:
    """Many layers and experts, a long context and an infinite limit are in the configs of real models."""
    setting(model, num_hidden_layers=126, num_experts=512, block_size=131_072, vocab_size=262_144)
    path = model / "config.json"
    path.write_text(path.read_text().replace('"block_size"', '"time_step_limit": [0.0, Infinity], "block_size"'))
    check_checkpoint(str(model))


@pytest.mark.parametrize("content", [b"", b"\xff" * 20, b"\x02\0\0\0\0\0\0\0[]", b"\x0a\0\0\0\0\0\0\0" + b'{"a": "b"}'])
def test_headers_of_tensors(model: Path, content: bytes) -> None:
    """Dtypes and sizes come from the files' headers; a file that has none is named."""
    kinds = list(stored_tensors(model))
    assert {dtype for dtype, _ in kinds} == {"F32"}
    assert sum(size for _, size in kinds) == sum(
        value.numel() * 4 for value in load_file(model / "model.safetensors").values()
    )
    (model / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="model.safetensors is no safetensors file. Remedy"):
        list(stored_tensors(model))
