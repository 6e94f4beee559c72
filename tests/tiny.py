"""A tiny run's model, tokenizer and rows in files, as `zotune train` takes them. For tests and bench/faults.py."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch

WORDS = "a the film plot cast is was it good bad dull great terrible fine warm mess script and but so very not".split()


def save_tiny(family: str, folder: Path, **other: int) -> None:
    """A random model of a few thousand weights (llama, deep, gpt2, bert, t5) and its tokenizer, in `folder`.

    `other`: sizes of a llama in place of the usual ones.
    """
    import transformers as hf

    from zotune.load import quiet

    tokenizer = _word_tokenizer(family)
    sizes = {
        "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2,
        "num_hidden_layers": 8 if family == "deep" else 3, "max_position_embeddings": 64,
        **other,
    }  # fmt: skip
    with torch.random.fork_rng():
        if family in ("llama", "deep"):
            model: Any = hf.LlamaForCausalLM(hf.LlamaConfig(**sizes, num_key_value_heads=1))
        elif family == "gpt2":
            gpt2 = hf.GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=2, n_head=2, n_positions=64)
            model = hf.GPT2LMHeadModel(gpt2)
        elif family == "bert":
            model = hf.BertForMaskedLM(hf.BertConfig(**sizes))
        else:
            t5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}
            model = hf.T5ForConditionalGeneration(hf.T5Config(vocab_size=len(tokenizer), **t5))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad(), quiet():
        for parameter in model.parameters():
            # Large enough that predictions differ, and norms that are not all one.
            spread, base = (0.3, 0.0) if parameter.ndim > 1 else (0.1, parameter.clone())
            parameter.copy_(base + spread * torch.randn(parameter.shape, generator=generator))
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _word_tokenizer(family: str) -> Any:
    """Words at white space, with the special tokens of the family around a text."""
    import tokenizers as tk
    from transformers import PreTrainedTokenizerFast

    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    ids = {word: index for index, word in enumerate([*specials, *WORDS])}
    tokenizer = tk.Tokenizer(tk.models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tk.pre_tokenizers.WhitespaceSplit()
    single = {"bert": "[CLS] $A [SEP]", "t5": "$A [SEP]", "gpt2": "$A"}.get(family, "[CLS] $A")
    around = [(word, ids[word]) for word in single.split() if word in ids]
    tokenizer.post_processor = tk.processors.TemplateProcessing(single=single, special_tokens=around)
    named = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named, mask_token="[MASK]", eos_token="[SEP]")


def save_rows(folder: Path) -> None:
    """train.jsonl (22 rows) and eval.jsonl (10 rows): text of 2 to 9 words, label 0 or 1."""
    draw = random.Random(5)
    for name, rows in (("train", 22), ("eval", 10)):
        lines = [{"text": " ".join(draw.choices(WORDS, k=draw.randint(2, 9))), "label": i % 2} for i in range(rows)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
