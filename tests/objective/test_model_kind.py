"""Kinds of models, what their forward accepts, and logits at chosen positions only."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from tests.models import FAMILIES, MORE_FAMILIES, Called, tiny
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    BertLMHeadModel,
    LlamaConfig,
)

from zotune.errors import ConfigError
from zotune.objective.model_kind import (
    accepts,
    last_logits,
    logits_at,
    model_kind,
    most_positions,
    seq2seq_logits,
    unwrap,
)


class Bare(nn.Module):
    """A causal model of nobody's library: a bare logits tensor, no config, no options."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding.from_pretrained(torch.arange(40.0).view(10, 4))

    def forward(self, input_ids: Tensor) -> Tensor:
        """Logits (R, T, 4)."""
        out: Tensor = self.table(input_ids).cumsum(1)
        return out


def adapted(model: nn.Module, config: Any) -> nn.Module:
    """The model under PEFT."""
    from peft import get_peft_model

    with torch.random.fork_rng(), warnings.catch_warnings():
        # peft 0.21 reads a name that transformers 5.23 deprecates.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        return get_peft_model(model, config).eval()


def lora(model: nn.Module, task: str, modules: list[str]) -> nn.Module:
    """The model with low-rank adapters."""
    from peft import LoraConfig

    return adapted(model, LoraConfig(task_type=task, target_modules=modules, r=2))


def test_kind_of_models(make_model: Any, kind_of: dict[str, str]) -> None:
    """Each family has its kind, also under PEFT and torch.compile."""
    for name, kind in kind_of.items():
        assert model_kind(make_model(name)) == kind
    assert model_kind(lora(make_model("bert"), "FEATURE_EXTRACTION", ["query"])) == "masked"
    assert model_kind(torch.compile(make_model("gpt2"), backend="eager")) == "causal"


@pytest.mark.parametrize(
    ("model_type", "options", "kind"),
    [
        ("llama", {}, "causal"),
        ("gpt2", {"architectures": ["GPT2LMHeadModel"]}, "causal"),
        ("bert", {}, "masked"),
        ("bert", {"architectures": ["BertForPreTraining"]}, "masked"),
        ("bert", {"is_decoder": True}, "causal"),
        ("bert", {"architectures": ["BertLMHeadModel"]}, "causal"),
        ("roberta", {"architectures": ["RobertaForMaskedLM"]}, "masked"),
        ("t5", {}, "seq2seq"),
        ("bart", {"architectures": ["BartForConditionalGeneration"]}, "seq2seq"),
        ("mamba", {}, "causal"),
    ],
)
def test_kind_of_configs(model_type: str, options: dict[str, Any], kind: str) -> None:
    """A config is enough, before any weight is loaded."""
    assert model_kind(AutoConfig.for_model(model_type, **options)) == kind


def test_models_without_a_head_are_refused() -> None:
    """A classifier, a vision model and an unknown module are errors."""
    config = BertConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    with torch.random.fork_rng():
        classifier = BertForSequenceClassification(config)
    with pytest.raises(ConfigError, match="BertForSequenceClassification has no language-model head"):
        model_kind(classifier)
    with pytest.raises(ConfigError, match="no language-model head"):
        model_kind(BartConfig(architectures=["BartForSequenceClassification"]))
    with pytest.raises(ConfigError, match="Cannot tell whether Bare"):
        model_kind(Bare())
    with pytest.raises(ConfigError, match="Cannot tell"):
        model_kind(AutoConfig.for_model("vit"))


def test_unwrap_and_accepts(make_model: Any) -> None:
    """Wrappers are looked through; `**kwargs` is not an argument."""
    llama = make_model("llama")
    wrapped = torch.compile(lora(llama, "CAUSAL_LM", ["q_proj"]), backend="eager")
    assert unwrap(wrapped) is llama and unwrap(llama) is llama
    assert accepts(wrapped, "logits_to_keep")
    assert not accepts(make_model("bert"), "logits_to_keep")
    assert not accepts(Bare(), "use_cache")


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "bare"])
def test_last_logits(name: str, make_model: Any) -> None:
    """The tail of the full logits, whether or not forward can be asked for it."""
    model = Bare() if name == "bare" else make_model(name)
    ids = torch.tensor([[4, 5, 6, 7], [7, 6, 5, 4]])
    with torch.no_grad():
        full = model(ids)
        full = full if name == "bare" else full.logits
        for keep in (1, 3, 4):
            torch.testing.assert_close(last_logits(model, keep, input_ids=ids), full[:, -keep:])


def test_last_logits_are_one_product(make_model: Any) -> None:
    """A frozen head would multiply the last positions of several rows row by row, reading its matrix for each."""
    llama, ids = make_model("llama").requires_grad_(False), torch.tensor([[4, 5, 6, 7], [7, 6, 5, 4]])
    with torch.no_grad():
        with Called() as alone:
            llama.get_output_embeddings()(torch.zeros(2, 4, llama.config.hidden_size)[:, -1:])
        with Called() as called:
            last_logits(llama, 1, input_ids=ids)
        heads = [*llama.get_output_embeddings()._forward_pre_hooks]
    assert "bmm" in alone.names and "bmm" not in called.names and not heads


def test_virtual_tokens_in_front_do_not_matter(make_model: Any) -> None:
    """Under prompt tuning the logits of the real tokens are returned, for causal and masked models."""
    from peft import PromptTuningConfig

    ids, seen = torch.tensor([[4, 5, 6, 7], [7, 6, 5, 4]]), torch.ones(2, 4, dtype=torch.int64)
    causal = adapted(make_model("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with torch.no_grad():
        full = causal(input_ids=ids).logits
        assert full.shape[1] == 7
        torch.testing.assert_close(last_logits(causal, 2, input_ids=ids), full[:, -2:])
        positions = torch.tensor([0, 3])
        found = logits_at(causal, positions, input_ids=ids, attention_mask=seen)
    torch.testing.assert_close(found, full[torch.arange(2), positions + 3])


@pytest.mark.parametrize("name", ["bert", "roberta", "lora", "compiled"])
def test_logits_at(name: str, make_model: Any) -> None:
    """One position per row, from the model as it is, under PEFT, and where no hook may be set."""
    model = make_model("roberta" if name == "roberta" else "bert")
    ids, seen = torch.tensor([[4, 5, 6, 7], [7, 6, 5, 4]]), torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    positions = torch.tensor([3, 1])
    with torch.no_grad():
        full = model(input_ids=ids, attention_mask=seen).logits
        if name == "lora":
            model = lora(model, "FEATURE_EXTRACTION", ["query", "decoder"])
        if name == "compiled":
            model.compile(backend="eager")
        found = logits_at(model, positions, input_ids=ids, attention_mask=seen)
    torch.testing.assert_close(found, full[torch.arange(2), positions])


def test_the_hook_is_removed(make_model: Any) -> None:
    """After success and after a failure inside the model, the output projection has no hook left."""
    model = make_model("bert")
    head = model.get_output_embeddings()
    ids = torch.tensor([[4, 5]])
    with torch.no_grad():
        logits_at(model, torch.tensor([1]), input_ids=ids)
    assert not head._forward_pre_hooks
    with pytest.raises(IndexError):
        logits_at(model, torch.tensor([1]), input_ids=ids + 10**6)
    assert not head._forward_pre_hooks


def test_a_causal_bert_takes_logits_to_keep() -> None:
    """The class decides, not the family."""
    config = BertConfig(
        vocab_size=9,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        is_decoder=True,
    )
    with torch.random.fork_rng():
        model = BertLMHeadModel(config).eval()
    assert model_kind(model) == "causal" and accepts(model, "logits_to_keep")


def test_seq2seq_logits_are_those_of_training(make_model: Any) -> None:
    """Labels are shifted as the model shifts them itself; padding of labels may be ignored targets."""
    model = make_model("t5")
    ids, seen = torch.tensor([[4, 5, 6], [7, 6, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
    labels = torch.tensor([[5, 6], [7, -100]])
    with torch.no_grad():
        found = seq2seq_logits(model, ids, seen, labels)
        torch.testing.assert_close(found, model(input_ids=ids, attention_mask=seen, labels=labels).logits)
    with pytest.raises(ConfigError, match="Bare cannot prepare decoder inputs"):
        seq2seq_logits(Bare(), ids, seen, labels)


def test_vision_language_configs_are_causal() -> None:
    """A decoder that also reads images answers as a causal model."""
    assert model_kind(AutoConfig.for_model("llava", text_config=LlamaConfig().to_dict())) == "causal"


# Families with a table of 32 positions; RoBERTa's first two are those of padding.
TABLES = {"opt": 32, "gpt2": 32, "bert": 32, "roberta": 30, "deberta": 32}


@pytest.mark.parametrize("family", [*FAMILIES, *MORE_FAMILIES, "bart"])
def test_most_positions(family: str) -> None:
    """So many tokens are read, and one more is not; a model without a table reads more than its config names."""
    sizes = {"d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_position_embeddings": 32}
    parts = {f"{part}_{size}": 2 for part in ("encoder", "decoder") for size in ("layers", "attention_heads")}
    bart = BartConfig(vocab_size=40, **sizes, **parts)
    model: Any = (BartForConditionalGeneration(bart) if family == "bart" else tiny(family)).eval()
    most = most_positions(model)
    assert most == {**TABLES, "bart": 32}.get(family)
    if family == "cnn":
        return
    ids = torch.full((1, most or 40), 3)
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        assert model(input_ids=ids, **more).logits.shape[1] == ids.shape[1]
        if most is not None:
            with pytest.raises((IndexError, RuntimeError)):
                model(input_ids=torch.full((1, most + 1), 3))


def test_no_positions() -> None:
    """A model that says nothing of positions is not limited."""
    assert most_positions(Bare()) is None
