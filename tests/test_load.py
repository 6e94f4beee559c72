"""Loading: the right class by config, adapters that depend on the seed alone, nothing run or drawn at random."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tests import models

from zotune.config import TrainConfig
from zotune.errors import ConfigError, DataError, UserError
from zotune.load import device_of, load_model, load_to_replay, load_tokenizer, meta_model, quiet
from zotune.objective.label_words import LabelWords
from zotune.objective.make import make_objective
from zotune.revisit import replay
from zotune.train import train
from zotune.watch import Quiet
from zotune.weights import base_sha256, weights_sha256

Config = Callable[..., TrainConfig]


def test_a_replay_names_what_has_moved(tmp_path: Path) -> None:
    """A folder of the model that is no longer there is no id of the hub: the run's config has it."""
    config = TrainConfig(model=str(tmp_path / "gone"), train=Path("t"), output_dir=tmp_path)
    with pytest.raises(DataError, match="gone does not exist any more. Remedy: correct `model:` in .*config.yaml"):
        load_to_replay(config)


@pytest.mark.parametrize(
    ("family", "name", "kind"),
    [
        ("llama", "LlamaForCausalLM", "causal"),
        ("gpt2", "GPT2LMHeadModel", "causal"),
        ("bert", "BertForMaskedLM", "masked"),
        ("t5", "T5ForConditionalGeneration", "seq2seq"),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_class_by_config(config: Config, family: str, name: str, kind: str, dtype: str) -> None:
    """Causal, masked and encoder-decoder models get their class, the dtype asked for, and eval mode."""
    settings = config(family, dtype=dtype)
    model = load_model(settings)
    assert type(model).__name__ == name and not any(module.training for module in model.modules())
    # T5 keeps one matrix per block in float32 when asked for float16: the model's own rule.
    kept = {torch.float32} if (family, dtype) == ("t5", "float16") else set()
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype), *kept}
    objective = make_objective(settings, load_tokenizer(settings), model)
    assert isinstance(objective, LabelWords) and objective.kind == kind


def test_dtype_auto(config: Config, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """auto takes the type that the checkpoint was stored in."""
    with quiet():
        load_model(config(dtype="bfloat16")).save_pretrained(tmp_path / "m")  # type: ignore[operator]
    assert next(load_model(config(model=str(tmp_path / "m"), dtype="auto")).parameters()).dtype == torch.bfloat16


def _lora(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p for name, p in model.named_parameters() if "lora_" in name}


@pytest.mark.parametrize("scope", ["lora", "lora & last:1", "last:2&lora"])
def test_lora_depends_on_the_seed_alone(config: Config, scope: str) -> None:
    """Whatever the global generator is at, the adapters begin the same; the generator is left as it was."""
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = _lora(load_model(config(scope=scope)))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    other = _lora(load_model(config(scope=scope)))
    assert one and weights_sha256(one) == weights_sha256(other)
    assert weights_sha256(one) != weights_sha256(_lora(load_model(config(scope=scope, seed=5))))


def test_lora_options(config: Config) -> None:
    """Rank and targets are the config's; all else is frozen; the model computes what its base computes."""
    base, model = load_model(config()), load_model(config(scope="lora", lora_rank=3, lora_targets=["gate_proj"]))
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert names == set(_lora(model)) and all("gate_proj" in name for name in names) and len(names) == 6
    assert {min(p.shape) for p in _lora(model).values()} == {3}
    tokens = torch.tensor([[2, 7, 8, 9]])
    assert torch.equal(model(input_ids=tokens).logits, base(input_ids=tokens).logits)


def test_loading_draws_nothing(config: Config) -> None:
    """The same checkpoint is the same model, and the global generator is not touched."""
    before = torch.get_rng_state()
    assert base_sha256(load_model(config())) == base_sha256(load_model(config()))
    assert torch.equal(torch.get_rng_state(), before)


# --- what cannot be loaded --------------------------------------------------------------------------------------------


def _copy(tiny: Callable[[str], Path], to: Path, family: str = "llama") -> Path:
    shutil.copytree(tiny(family), to)
    return to


def test_unknown_model(config: Config, tmp_path: Path) -> None:
    """A folder that is not there, and a hub id without a network, are one sentence that names the model."""
    for name in (str(tmp_path / "nowhere"), "nobody/no-such-model"):
        for load in (load_model, load_tokenizer):
            with pytest.raises(UserError, match=f"of '{name}' cannot be loaded: .* Remedy: give a folder") as error:
                load(config(model=name))
            assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"not tensors at all", b"\xff" * 64])
def test_damaged_weights(config: Config, tiny: Callable[[str], Path], tmp_path: Path, content: bytes) -> None:
    """A weights file that was cut or is something else is named, not a traceback."""
    model = _copy(tiny, tmp_path / "m")
    (model / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="the model of .*/m' cannot be loaded"):
        load_model(config(model=str(model)))


def test_damaged_config(config: Config, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """So is a config.json that is no JSON, and one of another size than the weights."""
    model = _copy(tiny, tmp_path / "m")
    settings = json.loads((model / "config.json").read_text())
    for text in ("{", "[]", "[" * 100_000, "3"):
        (model / "config.json").write_text(text)
        with pytest.raises(UserError, match="m/config.json (cannot be read|is no config of a model).*Remedy"):
            load_model(config(model=str(model)))
    gptq = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    for other in ({"hidden_size": 32}, {"hidden_size": "x"}, {"hidden_act": []}, {"num_attention_heads": 0}, gptq):
        (model / "config.json").write_text(json.dumps({**settings, **other}))
        with pytest.raises(UserError, match="the model of .*/m' cannot be loaded: .* Remedy"):
            load_model(config(model=str(model)))
    (model / "config.json").write_text(json.dumps({"model_type": "no-such"}))
    with pytest.raises(UserError, match="the model of .*/m' cannot be loaded"):
        load_model(config(model=str(model)))


def test_missing_weights(config: Config, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """A checkpoint without its head would be completed at random: refused, naming a weight."""
    from safetensors.torch import load_file, save_file

    model = _copy(tiny, tmp_path / "m")
    tensors = load_file(model / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="lacks 1 of the model's weights, such as lm_head.weight. Remedy"):
        load_model(config(model=str(model)))


def test_no_language_model_head(config: Config, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """A classifier is refused with what to load instead."""
    model = _copy(tiny, tmp_path / "m", "bert")
    path = model / "config.json"
    path.write_text(path.read_text().replace("BertForMaskedLM", "BertForSequenceClassification"))
    with pytest.raises(ConfigError, match="no language-model head"):
        load_model(config(model=str(model)))


@pytest.mark.parametrize(
    ("family", "name"), [("llava", "LlavaForConditionalGeneration"), ("qwen2_vl", "Qwen2VLForConditionalGeneration")]
)
def test_models_of_pictures(
    config: Config, tiny: Callable[[str], Path], tmp_path: Path, family: str, name: str
) -> None:
    """Transformers knows no causal class for them: they load as what they are, and train on texts alone."""
    model = _copy(tiny, tmp_path / "m", "llama")
    with quiet():
        models.tiny(family).save_pretrained(model)
    settings = config(model=str(model), scope="norms&last:1", steps=2)
    assert type(load_model(settings)).__name__ == type(meta_model(settings)).__name__ == name
    trained = train(settings, Quiet())
    assert trained["loss_after"] != trained["loss_before"]
    assert replay(tmp_path / "run", True, Quiet())["weights_sha256"] == trained["weights_sha256"]


def test_no_tokenizer(config: Config, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """A model folder without a tokenizer says that it is the tokenizer."""
    model = _copy(tiny, tmp_path / "m")
    for path in model.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(UserError, match="the tokenizer of .* cannot be loaded"):
        load_tokenizer(config(model=str(model)))


@pytest.mark.parametrize("name", ["cuda:99", "no-such", "mps:0", "meta"])
def test_device_that_is_not_there(config: Config, name: str) -> None:
    """A device that torch does not have is named with what works."""
    with pytest.raises(ConfigError, match=f"device '{name}' cannot be used: .* Remedy: --device cpu or auto"):
        device_of(config(device=name))
    assert device_of(config(device="cpu")) == torch.device("cpu")


# --- code that comes with a model -------------------------------------------------------------------------------------

CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
Path({ran!r}).touch()


class OwnConfig(LlamaConfig):
    model_type = "own"


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def own_code(tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A model whose classes are its own, and a file that appears when they are imported."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    model, ran = _copy(tiny, tmp_path / "own"), tmp_path / "ran"
    settings = json.loads((model / "config.json").read_text())
    settings["model_type"], settings["architectures"] = "own", ["OwnForCausalLM"]
    settings["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    (model / "config.json").write_text(json.dumps(settings))
    (model / "own.py").write_text(CODE.format(ran=str(ran)))
    return model, ran


def test_code_of_a_model_runs_only_when_allowed(config: Config, own_code: tuple[Path, Path]) -> None:
    """Refused by default, before a line of it runs, naming the flag; allowed by the option."""
    model, ran = own_code
    assert TrainConfig(model="m", train=Path("t"), output_dir=Path("o")).trust_remote_code is False
    with pytest.raises(
        UserError, match="the model of .*own' cannot be loaded: it needs code of its own.* pass --trust-remote-code"
    ):
        load_model(config(model=str(model)))
    assert not ran.exists()
    loaded = load_model(config(model=str(model), trust_remote_code=True))
    assert ran.exists() and type(loaded).__name__ == "OwnForCausalLM"


# --- files ------------------------------------------------------------------------------------------------------------


def test_quiet_puts_back_what_was(capsys: pytest.CaptureFixture[str], config: Config) -> None:
    """Nothing of transformers' bars or notes is printed while loading, and its settings are as before."""
    from transformers.utils import logging as noisy

    before: tuple[Any, ...] = noisy.get_verbosity(), noisy.is_progress_bar_enabled()
    load_model(config())
    assert (noisy.get_verbosity(), noisy.is_progress_bar_enabled()) == before
    assert capsys.readouterr() == ("", "")


def test_device_map(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers places the layers; processes that would each take all devices are refused, and a missing package."""
    settings = config(device="auto", device_map="balanced")
    model, plain = load_model(settings), load_model(config())
    assert base_sha256(model) == base_sha256(plain)
    with pytest.raises(ConfigError, match="device and device_map cannot be used together. Remedy"):
        config(device="cpu", device_map="auto")
    with pytest.raises(ConfigError, match="so would every process of torchrun. Remedy: one process, or --parallel"):
        load_model(settings, object())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="first values of a prefix .* Remedy: --scope prompt or lora"):
        load_model(config(scope="prefix", parallel="shard"), object())  # type: ignore[arg-type]
    monkeypatch.setattr("zotune.load.find_spec", lambda name: None)
    with pytest.raises(UserError, match="device_map needs accelerate. Remedy: pip install"):
        load_model(settings)


def test_weights_lie_where_products_round_alike(config: Config) -> None:
    """Weights that are mapped from a file begin where its header ends: they are moved to where others lie."""
    assert {parameter.data_ptr() % 64 for parameter in load_model(config()).parameters()} == {0}


def test_weights_that_no_device_holds(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """A map that leaves a part of the model elsewhere is refused before anything reads it."""

    meta = meta_model(config())

    class Partly:
        @staticmethod
        def from_pretrained(*_: Any, **given: Any) -> Any:
            assert given["device_map"] == "auto"
            return meta, {"missing_keys": []}

    monkeypatch.setattr("zotune.load._architecture", lambda _: (None, Partly))
    with pytest.raises(
        ConfigError, match="30 tensors, such as model.embed_tokens.weight, would wait elsewhere. Remedy"
    ):
        load_model(config(device="auto", device_map="auto"))
