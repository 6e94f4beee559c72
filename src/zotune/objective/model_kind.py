"""What kind of language model this is, what and how much its forward accepts, and logits only where they are scored."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from zotune.errors import ConfigError

Kind = Literal["causal", "masked", "seq2seq"]
KINDS: tuple[Kind, ...] = ("causal", "masked", "seq2seq")

_MASKED_HEADS = ("ForMaskedLM",)
_CAUSAL_HEADS = ("ForCausalLM", "LMHeadModel")
_OTHER_HEADS = (
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMultipleChoice",
    "ForNextSentencePrediction",
)


def unwrap(model: nn.Module) -> nn.Module:
    """The model under PEFT, data-parallel and torch.compile wrappers."""
    while True:
        inner: Any = getattr(model, "_orig_mod", None)  # torch.compile
        if inner is None and hasattr(model, "get_base_model"):  # PEFT
            base: Any = model
            inner = base.get_base_model()
        if inner is None and type(model).__name__ in ("DataParallel", "DistributedDataParallel"):
            inner = model.module
        if not isinstance(inner, nn.Module) or inner is model:
            return model
        model = inner


def model_kind(model_or_config: Any) -> Kind:
    """How the model reads text, from its class and its config (a loaded model or a transformers config).

    Order: encoder-decoder flag, class name or architectures of the config, transformers' own tables by
    model type. Raises ConfigError where the model has no language-model head or is not known.
    """
    if isinstance(model_or_config, nn.Module):
        model = unwrap(model_or_config)
        config = getattr(model, "config", None)
        names = [type(model).__name__]
    else:
        config = model_or_config
        names = list(getattr(config, "architectures", None) or [])
    for name in names:
        if name.endswith(_OTHER_HEADS):
            raise ConfigError(
                f"{name} has no language-model head, so tokens cannot be scored. "
                "Remedy: load a causal, masked or sequence-to-sequence language model."
            )
    if getattr(config, "is_encoder_decoder", False) is True:
        return "seq2seq"
    for name in names:
        if name.endswith(_MASKED_HEADS):
            return "masked"
        if name.endswith(_CAUSAL_HEADS):
            return "causal"
    found = _kind_by_type(config)
    if found is None:
        raise ConfigError(
            f"Cannot tell whether {', '.join(names) or 'the model'} is a causal, masked or "
            "sequence-to-sequence language model. Remedy: pass the kind."
        )
    return found


def _kind_by_type(config: Any) -> Kind | None:
    """From transformers' tables. BERT-like types stand in both, and are masked unless they decode."""
    model_type = getattr(config, "model_type", None)
    if model_type is None:
        return None
    from transformers.models.auto import modeling_auto as auto

    if model_type in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        return "masked"
    if model_type in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return "causal"
    if model_type in auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return "causal"
    return None


def reads_pictures(config: Any) -> bool:
    """Whether a config is of a model that transformers knows as one of pictures and texts, and not as a causal one."""
    from transformers.models.auto import modeling_auto as auto

    model_type = getattr(config, "model_type", None)
    only_text = model_type in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return model_type in auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES and not only_text


def accepts(model: nn.Module, argument: str) -> bool:
    """Whether the forward under all wrappers names this argument. `**kwargs` may ignore it: not counted."""
    return argument in inspect.signature(unwrap(model).forward).parameters


def virtual_tokens(model: nn.Module) -> int:
    """How many tokens PEFT puts before every text (prefix and prompt tuning); 0 for any other model."""
    settings: Any = getattr(model, "active_peft_config", None)
    return int(settings.num_virtual_tokens) if getattr(settings, "is_prompt_learning", False) else 0


def most_positions(model: nn.Module) -> int | None:
    """How many tokens a model with a table of positions can read, PEFT's virtual tokens included; None without one.

    Rotary and relative positions have no table, whatever their config's `max_position_embeddings` says.
    """
    base: Any = unwrap(model)
    config: Any = getattr(base, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    named = getattr(text, "max_position_embeddings", None)
    if not isinstance(named, int):
        return None
    found = []
    for name, module in base.named_modules():
        of_positions = any("position" in part or part == "wpe" for part in name.split("."))
        if of_positions and isinstance(module, nn.Embedding) and module.num_embeddings >= named:  # less: of a picture
            # OPT and BART begin at an offset, RoBERTa behind its padding.
            first = 0 if module.padding_idx is None else module.padding_idx + 1
            found.append(min(named, module.num_embeddings - int(getattr(module, "offset", first))))
    return min(found, default=None)


def ignores_positions(model: nn.Module) -> bool:
    """Whether PEFT drops the positions that a model is given: prompt tuning does, prefix tuning does not."""
    settings: Any = getattr(model, "active_peft_config", None)
    return virtual_tokens(model) > 0 and settings.peft_type != "PREFIX_TUNING"


def last_logits(model: nn.Module, keep: int, **inputs: Tensor) -> Tensor:
    """Logits (R, keep, V) of the last `keep` >= 1 positions; the head runs on no others where forward can.

    Counted from the end, so that virtual tokens which PEFT puts in front do not matter.
    """
    options: dict[str, Any] = {}
    if accepts(model, "logits_to_keep"):
        options["logits_to_keep"] = keep
    with whole_product(model):
        return _logits(_forward(model, inputs, options))[:, -keep:]


def logits_at(model: nn.Module, positions: Tensor, **inputs: Tensor) -> Tensor:
    """Logits (R, V) at one position (R,) of each row.

    Masked language models have no `logits_to_keep`. A hook on the output projection hands it the one hidden
    state per row instead; where that hook does not fire, the same row is picked from the full logits.
    """
    length = inputs["input_ids"].shape[1]
    with _project_only(model, positions, length):
        logits = _logits(_forward(model, inputs, {}))
    return _pick(logits, positions, length)[:, 0] if logits.shape[1] != 1 else logits[:, 0]


def seq2seq_logits(model: nn.Module, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
    """Logits (R, S, V) of the decoder for labels (R, S), shifted right as the model's own training does."""
    base: Any = unwrap(model)
    if not hasattr(base, "prepare_decoder_input_ids_from_labels"):
        raise ConfigError(
            f"{type(base).__name__} cannot prepare decoder inputs from labels. "
            "Remedy: use an encoder-decoder language model of transformers."
        )
    decoder_input_ids = base.prepare_decoder_input_ids_from_labels(labels=labels)
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
    return _logits(_forward(model, {**inputs, "decoder_input_ids": decoder_input_ids}, {}))[:, -labels.shape[1] :]


def _forward(model: nn.Module, inputs: dict[str, Tensor], options: dict[str, Any]) -> Any:
    # A key-value cache would be filled and thrown away.
    if accepts(model, "use_cache"):
        options = {**options, "use_cache": False}
    return model(**inputs, **options)


def _logits(output: Any) -> Tensor:
    """From a model output, a tuple, or a bare tensor."""
    if isinstance(output, Tensor):
        return output
    logits = getattr(output, "logits", None)
    found = output[0] if logits is None else logits
    assert isinstance(found, Tensor)
    return found


def _pick(x: Tensor, positions: Tensor, length: int) -> Tensor:
    """(R, T, D) -> (R, 1, D) at `positions`, which count within the last `length` of T."""
    index = positions + (x.shape[1] - length)
    return torch.take_along_dim(x, index[:, None, None], dim=1)


def whole_product(model: nn.Module) -> AbstractContextManager[None]:
    """While open, the output projection is one matrix product.

    The last positions of all rows are a slice. Torch multiplies a slice by a frozen matrix (PEFT freezes the head) row
    by row, reading the whole matrix for each: with 16 rows and 49,152 words that takes seven times as long.
    """
    return _before_head(model, Tensor.contiguous)


def _project_only(model: nn.Module, positions: Tensor, length: int) -> AbstractContextManager[None]:
    """While open, the output projection sees (R, 1, D) in place of (R, T, D)."""

    def narrow(x: Tensor) -> Tensor:
        fits = x.ndim == 3 and x.shape[0] == len(positions) and x.shape[1] >= length
        return _pick(x, positions, length) if fits else x

    return _before_head(model, narrow)


@contextmanager
def _before_head(model: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While open, `change` is made to what the output projection is given, where the model has one that can be seen."""
    base = unwrap(model)
    # A hook on a compiled model would force a new graph at every call.
    compiled = hasattr(model, "_orig_mod") or getattr(base, "_compiled_call_impl", None) is not None
    finder = getattr(base, "get_output_embeddings", None)
    head = finder() if callable(finder) and not compiled else None
    if not isinstance(head, nn.Module):
        yield
        return

    def changed(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        return (change(args[0]), *args[1:]) if args and isinstance(args[0], Tensor) else None

    handle = head.register_forward_pre_hook(changed)
    try:
        yield
    finally:
        handle.remove()
