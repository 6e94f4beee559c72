"""From a GGUF file to a Hugging Face folder, on a model of a few thousand parameters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from zotune.demo import smollm
from zotune.demo.hub import quiet
from zotune.demo.smollm import convert_gguf

gguf = pytest.importorskip("gguf")


def _write(path: Path) -> dict[str, np.ndarray]:
    """A one-layer Llama with a byte-level vocabulary, two heads and weights from a seeded generator."""
    draw = np.random.default_rng(7)
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *bytes_to_unicode().values(), "ĠĠ"]
    shapes = {
        "token_embd.weight": (len(tokens), 32),
        "output_norm.weight": (32,),
        "blk.0.attn_norm.weight": (32,),
        "blk.0.ffn_norm.weight": (32,),
        **{f"blk.0.attn_{name}.weight": (32, 32) for name in ("q", "k", "v", "output")},
        "blk.0.ffn_gate.weight": (64, 32),
        "blk.0.ffn_up.weight": (64, 32),
        "blk.0.ffn_down.weight": (32, 64),
    }
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(["Ġ Ġ"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    tensors = {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    for name, value in tensors.items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def test_convert_gguf_gives_a_plain_fp32_folder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The folder holds the file's weights in fp32, tied; the call is silent and leaves the random state."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tensors = _write(tmp_path / "model.gguf")
    out = tmp_path / "out"
    out.mkdir()
    state = torch.random.get_rng_state()
    convert_gguf(tmp_path / "model.gguf", out)
    assert torch.equal(state, torch.random.get_rng_state())
    assert capfd.readouterr() == ("", "")
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(out)
        tokenizer = AutoTokenizer.from_pretrained(out)
    assert "quantization_config" not in model.config.to_dict()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert np.array_equal(model.model.embed_tokens.weight.numpy(force=True), tensors["token_embd.weight"])
    assert np.array_equal(model.model.layers[0].mlp.up_proj.weight.numpy(force=True), tensors["blk.0.ffn_up.weight"])
    assert tokenizer.tokenize("a  12") == ["a", "ĠĠ", "1", "2"]
    assert tokenizer.chat_template == "{{ messages[0]['content'] }}"


def test_hub_weights_become_fp32(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A bf16 folder, as the hub has it, is rewritten in fp32 with its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _write(tmp_path / "model.gguf")
    plain, hub, out = (tmp_path / name for name in ("plain", "hub", "out"))
    for folder in (plain, hub, out):
        folder.mkdir()
    convert_gguf(tmp_path / "model.gguf", plain)
    with quiet():
        AutoModelForCausalLM.from_pretrained(plain, dtype=torch.bfloat16).save_pretrained(hub)
        AutoTokenizer.from_pretrained(plain).save_pretrained(hub)
    monkeypatch.setattr(smollm, "snapshot", lambda *_: hub)
    smollm.from_hub(out, lambda text: None)
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(out)
        assert AutoTokenizer.from_pretrained(out).tokenize("a  12") == ["a", "ĠĠ", "1", "2"]
    assert model.config.dtype == torch.float32
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
