"""The output head of a language model, and giving one that shares its table with the input embeddings its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from zotune.errors import ConfigError
from zotune.objective.model_kind import unwrap


def head_of(model: nn.Module) -> nn.Module:
    """The module that makes logits of hidden states. Raises ConfigError for a model that names none."""
    base: Any = unwrap(model)
    found = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
    if not isinstance(found, nn.Module):
        raise ConfigError(
            f"scope head: {type(base).__name__} names no output head. Remedy: --scope regex:PATTERN with its name."
        )
    return found


def head_parameters(model: nn.Module) -> set[str]:
    """Canonical names of the head's parameters. Raises ConfigError for a head that is tied to the input embeddings."""
    head = head_of(model)
    if is_tied(model):
        raise ConfigError(
            "scope head: the output head is tied to the input embeddings, which would be trained too. "
            "Remedy: zotune.head.untie(model) before, or regex:PATTERN with the embeddings' name to train both."
        )
    own = {id(parameter) for parameter in head.parameters()}
    return {name for name, parameter in model.named_parameters() if id(parameter) in own}


def is_tied(model: nn.Module) -> bool:
    """Whether the head's matrix is a table of embeddings."""
    own = {id(parameter) for parameter in head_of(model).parameters()}
    return any(id(module.weight) in own for module in model.modules() if isinstance(module, nn.Embedding))


def untie(model: nn.Module) -> nn.Module:
    """Give a tied head a copy of the table, in place: one more matrix in memory, the same logits. Returns `model`.

    The model's config says so too: a saved folder holds both matrices. Raises ConfigError where logits would change.
    """
    if not is_tied(model):
        return model
    base: Any = unwrap(model)
    head, before = head_of(model), _logits(base)
    if hasattr(head, "get_base_layer"):  # LoRA stands around it
        head = head.get_base_layer()  # type: ignore[operator]
    # A bias too may stand in two places (BERT), which loading an untied model does not put together again.
    for name, parameter in list(head.named_parameters(recurse=False)):
        setattr(head, name, nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad))
    configs = [base.config, base.config.get_text_config(), base.config.get_text_config(decoder=True)]
    for config in configs:
        if getattr(config, "tie_word_embeddings", False):
            config.tie_word_embeddings = False
    after = _logits(base)
    if before is not None and after is not None and not torch.equal(before, after):
        raise ConfigError(
            f"scope head: {type(base).__name__} computes other logits with a head of its own. Remedy: --scope lora."
        )
    return model


def _logits(model: Any) -> Tensor | None:
    """Logits of a few tokens; None on the meta device."""
    device = next(model.parameters()).device
    if device.type == "meta":
        return None
    ids = torch.arange(1, 4, device=device)[None]
    more = {"decoder_input_ids": ids} if getattr(model.config, "is_encoder_decoder", False) else {}
    with torch.no_grad():
        found: Tensor = model(input_ids=ids, **more).logits
    return found
