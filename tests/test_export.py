"""Exports load where they are meant to, with the logits of the run."""

from __future__ import annotations

import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tests.test_disk import disk_of
from torch import Tensor, nn

from zotune.cli import main
from zotune.config import TrainConfig
from zotune.errors import ConfigError, RunError
from zotune.export import DELTA, export, publish
from zotune.load import load_model
from zotune.revisit import replay_onto
from zotune.run import RunPaths
from zotune.train import train
from zotune.watch import Quiet
from zotune.weights import weights_sha256

AUTO = {
    "llama": "AutoModelForCausalLM", "gpt2": "AutoModelForCausalLM", "bert": "AutoModelForMaskedLM",
    "t5": "AutoModelForSeq2SeqLM",
}  # fmt: skip


@pytest.fixture
def trained(config: Callable[..., TrainConfig]) -> Callable[..., tuple[Path, nn.Module]]:
    """A run and the model that its journal leads to."""

    def make(family: str = "llama", **options: Any) -> tuple[Path, nn.Module]:
        settings = config(family, **{"steps": 2, **options})
        train(settings, Quiet())
        model = load_model(settings)
        replay_onto(RunPaths(settings.output_dir), model, Quiet())
        return settings.output_dir, model

    return make


def logits(model: nn.Module, family: str) -> Tensor:
    ids = torch.arange(6, 18).view(2, 6)
    inputs = {"input_ids": ids, **({"decoder_input_ids": ids[:, :3]} if family == "t5" else {})}
    with torch.inference_mode():
        found: Tensor = model.eval()(**inputs).logits
    return found


@pytest.mark.parametrize("scope", ["full", "head"])
@pytest.mark.parametrize("family", AUTO)
def test_whole_model(trained: Any, tmp_path: Path, family: str, scope: str) -> None:
    """A folder that `from_pretrained` reads, tokenizer included, with the same logits to the bit."""
    import transformers

    run, model = trained(family, scope=scope)
    found = export(run, tmp_path / "out", Quiet())
    assert found["form"] == "merge" and found["steps"] == 2
    assert found["bytes"] == sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    loaded = getattr(transformers, AUTO[family]).from_pretrained(tmp_path / "out")
    assert torch.equal(logits(loaded, family), logits(model, family))
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out").tokenize("good film") == ["good", "film"]


LORA = {"scope": "lora", "lora_targets": ["q_proj", "v_proj"], "lr": 1.0}


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", LORA),
        ("llama", {"scope": "prefix"}),
        ("gpt2", {"scope": "prefix", "dtype": "bfloat16", "prefix_tokens": 2}),
        *((family, {"scope": "prompt"}) for family in AUTO),
    ],
)
def test_adapter(
    trained: Any, tmp_path: Path, tiny: Callable[[str], Path], family: str, options: dict[str, Any]
) -> None:
    """A run with adapters gives one of PEFT: on the base model the same logits to the bit, and not the base's."""
    pytest.importorskip("peft")
    import transformers
    from peft import PeftModel

    run, model = trained(family, **options)
    found = export(run, tmp_path / "out", Quiet())
    assert found["form"] == "adapter"
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {path.name for path in (tmp_path / "out").iterdir()}
    dtype = getattr(torch, options.get("dtype", "float32"))
    base = getattr(transformers, AUTO[family]).from_pretrained(tiny(family), dtype=dtype)
    before = logits(base, family)
    with warnings.catch_warnings():  # PEFT asks transformers for an attribute that is being renamed
        warnings.simplefilter("ignore", FutureWarning)
        loaded = PeftModel.from_pretrained(base, tmp_path / "out")
    assert torch.equal(logits(loaded, family), logits(model, family))
    assert not torch.equal(before, logits(model, family)[:, -before.shape[1] :])


@pytest.mark.parametrize("options", [LORA, {"scope": "bank", "method": "lozo"}])
def test_merged_adapter(trained: Any, tmp_path: Path, options: dict[str, Any]) -> None:
    """Folded into its base it is a plain model, whose logits differ by rounding alone."""
    pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    run, model = trained(**options)
    assert export(run, tmp_path / "out", Quiet(), "merge")["form"] == "merge"
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert not any("lora" in name for name, _ in loaded.named_parameters())
    torch.testing.assert_close(logits(loaded, "llama"), logits(model, "llama"), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "targets"),
    [
        *(("gpt2", targets) for targets in (["lm_head"], ["wte"], ["wte", "lm_head"], ["lm_head", "c_attn"])),
        ("bert", ["decoder"]),
        ("bert", ["word_embeddings"]),
        ("t5", ["lm_head"]),
    ],
)
def test_merged_adapter_of_tied_weights(trained: Any, tmp_path: Path, family: str, targets: list[str]) -> None:
    """What is folded into the head or the embeddings is no part of the other, though they began as one matrix."""
    pytest.importorskip("peft")
    import transformers

    run, model = trained(family, **{**LORA, "lora_targets": targets})
    export(run, tmp_path / "out", Quiet(), "merge")
    loaded: Any = getattr(transformers, AUTO[family]).from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(loaded, family), logits(model, family), rtol=1e-4, atol=1e-5)
    assert not torch.equal(loaded.get_input_embeddings().weight, loaded.get_output_embeddings().weight)


def test_weights_that_cannot_be_parted(trained: Any, tmp_path: Path) -> None:
    """An encoder's embeddings are also the decoder's: the delta of one of them cannot be folded in."""
    pytest.importorskip("peft")
    run, _ = trained("t5", **{**LORA, "lora_targets": ["encoder.embed_tokens"]})
    with pytest.raises(ConfigError, match="cannot be folded in: they share weights .* Remedy: --adapter"):
        export(run, tmp_path / "out", Quiet(), "merge")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_delta(trained: Any, config: Any, tmp_path: Path, dtype: str) -> None:
    """Base plus delta, rounded once, is the trained weight to the bit; the file says which hash that is."""
    run, model = trained(dtype=dtype, scope="norms")
    found = export(run, tmp_path / "out", Quiet(), "delta")
    delta = load_file(tmp_path / "out" / DELTA)
    base, after = (dict(m.named_parameters()) for m in (load_model(config(dtype=dtype, scope="norms")), model))
    assert delta and all("norm" in name for name in delta)
    made = {name: (base[name].to(delta[name].dtype) + delta[name]).to(base[name].dtype) for name in delta}
    assert all(torch.equal(made[name], after[name]) for name in delta)
    with safe_open(tmp_path / "out" / DELTA, "pt") as file:
        assert file.metadata()["weights_sha256"] == found["weights_sha256"] == weights_sha256(made)


def test_nothing_is_overwritten(trained: Any, tmp_path: Path) -> None:
    """A folder with something in it stays as it is without force, a run without LoRA has no adapter."""
    run, _ = trained()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(RunError, match=r"is not empty. Remedy: name another folder"):
        export(run, tmp_path / "out", Quiet())
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]
    assert export(run, tmp_path / "out", Quiet(), force=True)["steps"] == 2
    assert not (tmp_path / "out" / "mine").exists()
    with pytest.raises(ConfigError, match="makes no adapter. Remedy: --merge or --delta"):
        export(run, tmp_path / "other", Quiet(), "adapter")
    run, _ = trained(scope="prompt", output_dir=tmp_path / "prompt")
    with pytest.raises(ConfigError, match="are no weights of the model. Remedy: --adapter or --delta"):
        export(run, tmp_path / "other", Quiet(), "merge")


def test_a_failed_export_leaves_nothing(tmp_path: Path) -> None:
    """Whatever fails while the folder is filled, neither it nor what was written aside stays."""

    def fill(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise OSError(28, "No space left on device")

    with pytest.raises(RunError, match=r"No space left.*Remedy"):
        publish(tmp_path / "out", fill)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("scope", ["norms", "lora"])
@pytest.mark.parametrize(
    "command",
    [
        "export RUN --to NEW", "export RUN --to NEW --merge", "export RUN --to NEW --delta", "replay RUN --to NEW",
        "checkout RUN --step 1 --to NEW", "push RUN me/it --to NEW", "cp RUN NEW", "branch RUN --to NEW",
    ],
)  # fmt: skip
def test_a_full_disk(
    trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, scope: str
) -> None:
    """Whichever file has no room, of whichever library: one sentence about space, and nothing that is half written."""
    run, _ = trained(scope=scope)
    places = {"RUN": run, "NEW": tmp_path / "new" / "out"}
    codes = []
    for size in (0, 200, 1000, 4000, 16_000):
        with disk_of(size), pytest.raises(SystemExit) as ended:
            main([str(places.get(word, word)) for word in command.split()])
        said = capsys.readouterr().err
        codes.append(ended.value.code)
        if ended.value.code:
            assert ended.value.code == 4 and "cannot be written: File too large. Remedy: free space there.\n" in said
            assert not (tmp_path / "new").exists() or list((tmp_path / "new").iterdir()) == []
        else:
            shutil.rmtree(tmp_path / "new")
    assert codes[0] == 4 and sorted(codes, reverse=True) == codes


def test_a_whole_model_is_exported_without_peft(
    config: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What trained no adapter needs no library of adapters."""
    settings = config(scope="norms", steps=1)
    train(settings, Quiet())
    monkeypatch.setitem(sys.modules, "peft", None)
    assert export(settings.output_dir, tmp_path / "out", Quiet())["form"] == "merge"
