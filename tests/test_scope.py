"""Which parameters a scope selects, on real families' module trees."""

from __future__ import annotations

import pytest
from tests.models import FAMILIES, VOCAB, tiny
from torch import nn

from zotune.errors import ConfigError
from zotune.scope import blocks, decays, input_embeddings, is_norm, select

families = pytest.mark.parametrize("family", FAMILIES)

# The first and the last parameters of `last:1`: nothing before the last block, everything behind it.
LAST_FIRST = {
    "llama": "model.layers.1.",
    "qwen3": "model.layers.1.",
    "gemma3": "model.layers.1.",
    "qwen3_moe": "model.layers.1.",
    "opt": "model.decoder.layers.1.",
    "gpt2": "transformer.h.1.",
    "bert": "bert.encoder.layer.1.",
    "roberta": "roberta.encoder.layer.1.",
    "t5": "decoder.block.1.",
}
LAST_TAIL = {
    "llama": {"model.norm.weight", "lm_head.weight"},
    "qwen3": {"model.norm.weight"},
    "gemma3": {"model.norm.weight"},
    "qwen3_moe": {"model.norm.weight", "lm_head.weight"},
    "opt": {"model.decoder.final_layer_norm.weight", "model.decoder.final_layer_norm.bias"},
    "gpt2": {"transformer.ln_f.weight", "transformer.ln_f.bias"},
    "t5": {"decoder.final_layer_norm.weight"},
}


class Toy(nn.Module):
    """Experts outnumber the blocks, and each block holds a list of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.layers = nn.ModuleList(
            nn.ModuleDict({"experts": nn.ModuleList(nn.Linear(4, 4) for _ in range(6))}) for _ in range(3)
        )
        self.head = nn.Linear(4, 5)


@families
def test_full_is_every_trainable_parameter_once_in_the_models_order(family: str) -> None:
    """Tied parameters count once, under their first name; frozen ones not at all."""
    model = tiny(family)
    every = [name for name, _ in model.named_parameters()]
    assert select(model) == select(model, "full") == every
    frozen = dict(model.named_parameters())[every[0]]
    frozen.requires_grad = False
    assert select(model) == every[1:]


@families
def test_norms_are_the_normalisation_layers(family: str) -> None:
    """Every family's own class is recognised, and nothing of two dimensions is taken for a norm."""
    model = tiny(family)
    chosen, named = select(model, "norms"), dict(model.named_parameters())
    assert len(chosen) >= 4
    assert all(named[name].ndim == 1 and ("norm" in name.lower() or "ln_" in name) for name in chosen)
    left = [name for name in named if name not in chosen and "norm" in name.lower().rsplit(".", 2)[-2]]
    assert left == []


def test_biases_are_named_so() -> None:
    """By the last part of the name alone."""
    chosen = select(tiny("opt"), "biases")
    assert "model.decoder.layers.0.self_attn.k_proj.bias" in chosen
    assert all(name.endswith(".bias") for name in chosen)


@families
def test_the_last_blocks_and_what_follows_them(family: str) -> None:
    """`last:1` starts at the last block: no embedding, no earlier block, no encoder; final norm and head are in."""
    model, first = tiny(family), LAST_FIRST[family]
    chosen = set(select(model, "last:1"))
    inside = {name for name, _ in model.named_parameters() if name.startswith(first)}
    assert inside and inside <= chosen
    tail = LAST_TAIL.get(family) or {
        name for name, _ in model.named_parameters() if name.startswith(("cls.", "lm_head."))
    }
    assert chosen - inside == tail


def test_last_of_all_blocks_still_leaves_embeddings_out() -> None:
    """`last:2` of two blocks is everything but the input side."""
    model = tiny("bert")
    left = {name for name, _ in model.named_parameters()} - set(select(model, "last:2"))
    assert left and all(name.startswith("bert.embeddings.") for name in left)


def test_regex_searches_and_parts_intersect() -> None:
    """`&` keeps what both parts select, spaces around it do not matter."""
    model = tiny("llama")
    assert select(model, "regex:q_proj|k_proj") == [
        name for name, _ in model.named_parameters() if "q_proj" in name or "k_proj" in name
    ]
    both = select(model, "norms & last:1")
    assert set(both) == set(select(model, "norms")) & set(select(model, "last:1")) and len(both) == 3


@pytest.mark.parametrize(
    ("scope", "words"),
    [
        ("everything", "unknown scope 'everything'"),
        ("last:0", "unknown scope 'last:0'"),
        ("last:3", "has 2 blocks"),
        ("regex:(", "not a regular expression that can be used: missing ), unterminated subpattern"),
        ("regex:[", "not a regular expression that can be used: unterminated character set"),
        ("last:\u00b2", "unknown scope 'last:\u00b2'"),
        ("block:" + "9" * 5000, "unknown scope 'block:"),
        ("lora", "selects no trainable parameter"),
        ("norms&biases", "selects no trainable parameter"),
        ("", "unknown scope ''"),
    ],
)
def test_a_scope_that_cannot_be_is_refused_with_a_remedy(scope: str, words: str) -> None:
    """Unknown words, more blocks than there are, broken patterns and empty selections are named."""
    with pytest.raises(ConfigError, match="Remedy") as caught:
        select(tiny("llama"), scope)
    assert words in str(caught.value)


def test_a_model_without_blocks_or_trainable_parameters_is_told_so() -> None:
    """`last:N` needs a list of blocks; a frozen model has nothing to train."""
    with pytest.raises(ConfigError, match="nn.ModuleList"):
        select(nn.Linear(2, 2), "last:1")
    with pytest.raises(ConfigError, match="every parameter is frozen"):
        select(nn.Linear(2, 2).requires_grad_(False))


def test_lists_inside_a_block_are_not_the_blocks() -> None:
    """Six experts in each of three blocks: the blocks are the three."""
    found = blocks(Toy())
    assert found is not None and found[0] == "layers" and len(found[1]) == 3
    t5 = blocks(tiny("t5"))
    assert t5 is not None and t5[0] == "decoder.block"
    assert blocks(nn.Linear(2, 2)) is None


@families
def test_decay_reaches_matrices_only(family: str) -> None:
    """Two or more dimensions and no norm; never a vector."""
    model = tiny(family)
    for name, parameter in model.named_parameters():
        assert decays(model, name) == (parameter.ndim >= 2), name


def test_a_norm_with_a_matrix_does_not_decay() -> None:
    """LayerNorm over two dimensions has weights of two dimensions, and is a norm all the same."""
    model = nn.Sequential(nn.LayerNorm((3, 4)), nn.Linear(4, 4))
    assert is_norm(model[0]) and not is_norm(model[1])
    assert not decays(model, "0.weight") and decays(model, "1.weight") and not decays(model, "1.bias")


@families
def test_one_block(family: str) -> None:
    """All of a block and nothing else; a number that no block has and `dominant` without a batch are refused."""
    model = tiny(family)
    found = blocks(model)
    assert found is not None
    prefix = f"{found[0]}.1."
    assert select(model, "block:1") == [name for name in select(model) if name.startswith(prefix)]
    assert set(select(model, "block:1")) < set(select(model, "last:1")) or family == "bert"
    with pytest.raises(ConfigError, match=f"{found[0]} has blocks 0 to 1. Remedy"):
        select(model, "block:2")
    with pytest.raises(ConfigError, match="found by a forward.*Remedy: scope block:N"):
        select(model, "dominant")


@families
def test_input_embeddings(family: str) -> None:
    """The table of tokens, as large as the vocabulary; none in a plain module, nor where transformers finds none."""
    found = input_embeddings(tiny(family))
    assert isinstance(found, nn.Embedding) and found.num_embeddings == VOCAB
    assert input_embeddings(nn.Linear(2, 2)) is None
    assert input_embeddings(Unknown()) is None


class Unknown(nn.Module):
    """As a model of transformers that does not know its table."""

    def get_input_embeddings(self) -> nn.Module:
        raise NotImplementedError
