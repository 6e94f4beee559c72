"""What a scope adds to a model before the training: LoRA, virtual tokens, or an output head of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from zotune.config import TrainConfig
from zotune.errors import ConfigError, UserError
from zotune.head import untie
from zotune.quantised.bank import add_bank, to_peft
from zotune.quantised.scales import add_scales, settle_scales
from zotune.run import RunPaths
from zotune.sensitive import add_sensitive, settle_sensitive
from zotune.virtual_tokens import add_prefix, add_prompt, peft_quiet, read_start

_ALL_LINEAR = "all-linear"  # PEFT's word for every linear layer but the head, which it does not take in a list


def added_by(scope: str) -> str | None:
    """The part of a scope that adds something to the model, if any. Raises ConfigError for two of them."""
    found = [part for part in (each.strip() for each in scope.split("&")) if part in ADD]
    if len(set(found)) > 1:
        raise ConfigError(f"scope {scope!r} names {found[0]} and {found[1]}. Remedy: train one of them at a time.")
    return found[0] if found else None


def is_adapter(scope: str) -> bool:
    """Whether what is trained lies beside the model's own weights, as a PEFT adapter."""
    return added_by(scope) in ("lora", "prefix", "prompt", "bank")


def can_merge(scope: str) -> bool:
    """Whether what is trained can be written as weights of the model itself."""
    return added_by(scope) not in ("prefix", "prompt")


def add_for_scope(model: nn.Module, config: TrainConfig) -> nn.Module:
    """`model` with what `config.scope` adds. Its first values depend on the seed alone. Raises ConfigError."""
    name = added_by(config.scope)
    return model if name is None else ADD[name](model, config)


def for_others(model: nn.Module) -> nn.Module:
    """What other tools can read: the trained model without modules of zotune's own, in place."""
    return to_peft(settle_scales(settle_sensitive(model)))


def _lora(model: nn.Module, config: TrainConfig) -> nn.Module:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise UserError("scope lora needs PEFT. Remedy: pip install 'zotune[peft]'.") from None
    # One atom at a time is scaled by alpha * r where LoRA divides alpha by r (arXiv 2605.19767): see zotune.atoms.
    alpha = config.lora_alpha * config.lora_rank**2 if config.blocks == "atoms" else config.lora_alpha
    settings = LoraConfig(
        r=config.lora_rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        target_modules=_ALL_LINEAR if config.lora_targets == [_ALL_LINEAR] else config.lora_targets,
        lora_dropout=0.0,
    )
    with peft_quiet(config.seed):
        try:
            adapted: nn.Module = get_peft_model(model, settings)
        except ValueError as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"LoRA cannot be added: {reason}. Remedy: --lora-targets all-linear, or the modules' names there."
            ) from None
    return adapted


def _prefix(model: nn.Module, config: TrainConfig) -> nn.Module:
    paths = RunPaths(config.output_dir)
    paths.refuse_links()
    return add_prefix(model, config.prefix_tokens, config.seed, read_start(paths.start))


def _prompt(model: nn.Module, config: TrainConfig) -> nn.Module:
    return add_prompt(model, config.prefix_tokens, config.seed)


def _bank(model: nn.Module, config: TrainConfig) -> nn.Module:
    return add_bank(model, config.bank_rank)


def _sensitive(model: nn.Module, config: TrainConfig) -> nn.Module:
    if config.sensitive is None:
        raise ConfigError("scope sensitive needs a mask. Remedy: --sensitive FILE, made by `zotune sensitive`.")
    return add_sensitive(model, config.sensitive)


def _scales(model: nn.Module, config: TrainConfig) -> nn.Module:
    return add_scales(model)


def _head(model: nn.Module, config: TrainConfig) -> nn.Module:
    return untie(model)


ADD: Mapping[str, Callable[[nn.Module, TrainConfig], nn.Module]] = {
    "lora": _lora,
    "prefix": _prefix,
    "prompt": _prompt,
    "head": _head,
    "scales": _scales,
    "bank": _bank,
    "sensitive": _sensitive,
}
