"""Fixtures and rules every test shares. Nothing here knows a method, a model or a file format."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from zotune.config import TrainConfig

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


# --- a tiny run: model, tokenizer and rows in files, as `zotune train` takes them

WORDS = "a the film plot cast is was it good bad dull great terrible fine warm mess script and but so very not".split()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`tiny("llama")`: a folder with a random model of a few thousand weights and its tokenizer.

    Families: llama (8 blocks of it are "deep"), gpt2 (tied), bert (masked), t5 (encoder and decoder).
    """
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp("models") / family
            _save_tiny(family, made[family])
        return made[family]

    return folder


def _save_tiny(family: str, folder: Path) -> None:
    import transformers as hf

    from zotune.load import quiet

    tokenizer = _word_tokenizer(family)
    sizes = {
        "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2,
        "num_hidden_layers": 8 if family == "deep" else 3, "max_position_embeddings": 64,
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


@pytest.fixture(scope="session")
def movies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.jsonl (22 rows) and eval.jsonl (10 rows): text of 2 to 9 words, label 0 or 1."""
    folder, draw = tmp_path_factory.mktemp("movies"), random.Random(5)
    for name, rows in (("train", 22), ("eval", 10)):
        lines = [{"text": " ".join(draw.choices(WORDS, k=draw.randint(2, 9))), "label": i % 2} for i in range(rows)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
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
