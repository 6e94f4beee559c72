"""Tiny tokenizers and random models, built offline, and the slow reference that the objectives must equal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
)

SENTENCES = [
    "a warm and funny film that made me smile from the first scene to the last",
    "the plot is a mess and it was terrible",
    "great acting but the script is weak",
    "it was great . it was not terrible at all",
    "is this good or bad ? Yes or No",
    "so bad it hurts",
    "fine",
]


def word_level(prefix: Sequence[str], suffix: Sequence[str]) -> PreTrainedTokenizerFast:
    """Words at white space; `prefix` and `suffix` around each text."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = sorted({word for sentence in SENTENCES for word in sentence.split()})
    vocabulary = {token: index for index, token in enumerate([*specials, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=" ".join([*prefix, "$A", *suffix]),
        special_tokens=[(token, vocabulary[token]) for token in dict.fromkeys([*prefix, *suffix])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        mask_token="[MASK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        eos_token="[SEP]",
    )


def byte_level(prefix: Sequence[str], suffix: Sequence[str], mask: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE with leading-space tokens, trained on the sentences."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "<pad>", "</s>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Repeats make the words of the tests single tokens.
    tokenizer.train_from_iterator(SENTENCES * 4, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=" ".join([*prefix, "$A", *suffix]),
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in dict.fromkeys([*prefix, *suffix])],
    )
    named: dict[str, Any] = {"eos_token": "</s>"}
    if mask:
        named = {**named, "pad_token": "<pad>", "mask_token": AddedToken("<mask>", lstrip=True, special=True)}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)


@pytest.fixture(scope="session")
def tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    """One tokenizer per family: GPT-2 adds nothing, Llama and OPT a first token, T5 a last, BERT both."""
    return {
        "gpt2": byte_level([], []),
        "llama": byte_level(["<s>"], []),
        "opt": byte_level(["</s>"], []),
        "roberta": byte_level(["<s>"], ["</s>"], mask=True),
        "bert": word_level(["[CLS]"], ["[SEP]"]),
        "t5": word_level([], ["[SEP]"]),
    }


def build(name: str, vocab: int) -> nn.Module:
    """A random model of two layers."""
    if name == "llama":
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocab,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=128,
            )
        )
    if name == "gpt2":
        return GPT2LMHeadModel(GPT2Config(vocab_size=vocab, n_embd=32, n_layer=2, n_head=4, n_positions=128))
    if name == "opt":
        return OPTForCausalLM(
            OPTConfig(
                vocab_size=vocab,
                hidden_size=32,
                word_embed_proj_dim=32,
                ffn_dim=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=128,
            )
        )
    small = {
        "vocab_size": vocab,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
    }
    if name == "bert":
        return BertForMaskedLM(BertConfig(**small))
    if name == "roberta":
        return RobertaForMaskedLM(RobertaConfig(**small, pad_token_id=1))
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=vocab,
            d_model=32,
            d_kv=8,
            d_ff=48,
            num_layers=2,
            num_heads=4,
            pad_token_id=0,
            decoder_start_token_id=0,
        )
    )


@pytest.fixture(scope="session")
def make_model(tokenizers: dict[str, Any]) -> Callable[..., nn.Module]:
    """`make_model(name, dtype)`: seeded, in eval mode, with weights large enough that predictions differ."""

    def make(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
        generator = torch.Generator().manual_seed(11)
        # The library draws initial weights from the global stream; each is drawn anew below.
        with torch.random.fork_rng():
            model = build(name, len(tokenizers[name]))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        return model.eval().to(dtype)

    return make


@pytest.fixture(scope="session")
def kind_of() -> dict[str, str]:
    """Kind by family."""
    return {
        "llama": "causal",
        "gpt2": "causal",
        "opt": "causal",
        "bert": "masked",
        "roberta": "masked",
        "t5": "seq2seq",
    }


@pytest.fixture(scope="session")
def log_probabilities() -> Callable[..., Tensor]:
    """The reference: log-probability of each token of one option after one prompt, with full logits."""

    def compute(model: Any, kind: str, example: Any, option: int, begin: Sequence[int] = ()) -> Tensor:
        prompt, tokens = list(example.prompt), list(example.options[option])
        with torch.no_grad():
            if kind == "causal":
                logits = model(input_ids=torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
            elif kind == "masked":
                logits = model(input_ids=torch.tensor([prompt])).logits[0, example.mask][None]
            else:
                said = [model.config.decoder_start_token_id, *begin, *tokens[:-1]]
                output = model(input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([said]))
                logits = output.logits[0, len(begin) :]
        return torch.log_softmax(logits, -1)[range(len(tokens)), tokens]

    return compute


@pytest.fixture(scope="session")
def repeat() -> Callable[[dict[str, Any], int], dict[str, Any]]:
    """A batch several times over along dim 0, as the optimizer's lanes see it."""

    def repeat_batch(batch: dict[str, Any], times: int) -> dict[str, Any]:
        return {
            name: torch.cat([value] * times) if isinstance(value, Tensor) else value for name, value in batch.items()
        }

    return repeat_batch


@pytest.fixture(scope="session")
def stories() -> Path:
    """The folder of the small pretrained Llama, where the checkout has the shared data beside it."""
    folder = Path(__file__).resolve().parents[3] / "shared" / "data" / "stories260K"
    if not folder.is_dir():
        pytest.skip("the shared data folder with stories260K is not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def stories_tokenizer(stories: Path) -> Any:
    """Its tokenizer."""
    return AutoTokenizer.from_pretrained(stories)
