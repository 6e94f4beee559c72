"""Which parameters are trained: presets and patterns over canonical names.

`full` every parameter that requires grad; `norms` and `biases` by the kind of module and name; `last:N` the last N
blocks and what follows them; `block:N` block N alone, from 0; `head` the output head; `lora`, `prefix` and `prompt` the
weights of such an adapter; `scales` those of packed layers; `bank` low-rank updates beside linear layers; `sensitive`
the weights of a mask; `regex:PATTERN` a search in the names. `&` intersects: `norms&last:6`. `dominant` is one block
too, which takes a forward to find (`zotune.dominant`).
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, nn

from zotune.errors import ConfigError
from zotune.head import head_parameters
from zotune.matching import BadPattern, found_in
from zotune.quantised.layers import packed_layers

_NORM = re.compile(r"norm", re.IGNORECASE)
_NUMBER = re.compile("[0-9]{1,9}")
# Parts that say where a parameter lies, and mean every weight there.
_PLACES = ("full", "last", "block")


def select(model: nn.Module, scope: str = "full") -> list[str]:
    """Canonical names of the parameters in `scope`, in the model's order. Raises ConfigError if there are none."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    chosen, parts = set(named), [part.strip() for part in scope.split("&")]
    for part in parts:
        chosen &= _preset(model, named, part)
    if all(part.partition(":")[0] in _PLACES for part in parts):
        _refuse_packed(model, scope)
    if not chosen:
        raise ConfigError(
            f"scope {scope!r} selects no trainable parameter of {len(named)}. Remedy: check requires_grad and the "
            f"names, such as {next(iter(named), 'none: every parameter is frozen')!r}."
        )
    return [name for name in named if name in chosen]


def _refuse_packed(model: nn.Module, scope: str) -> None:
    packed = packed_layers(model)
    if packed:
        raise ConfigError(
            f"scope {scope!r} would leave out {len(packed)} linear layers whose weights are packed, such as "
            f"{next(iter(packed))}. Remedy: --scope lora, bank, scales or norms, alone or as {scope}&lora."
        )


def _preset(model: nn.Module, named: dict[str, nn.Parameter], part: str) -> set[str]:
    kind, _, argument = part.partition(":")
    if part == "full":
        return set(named)
    if part == "norms":
        return {name for name in named if is_norm(_owner(model, name))}
    if part == "biases":
        return {name for name in named if name.rpartition(".")[2] == "bias"}
    if part == "lora":
        return {name for name in named if "lora_" in name}
    if part in ("prefix", "prompt"):
        return {name for name in named if "prompt_encoder." in name}
    if part == "bank":
        return {name for name in named if name.rpartition(".")[2] == "bank_delta"}
    if part == "sensitive":
        return {name for name in named if name.rpartition(".")[2] == "sensitive_values"}
    if part == "scales":
        return {name for name in named if name.rpartition(".")[2] == "quant_scale"}
    if part == "head":
        return head_parameters(model) & set(named)
    if kind == "last" and _NUMBER.fullmatch(argument) and int(argument) > 0:
        return _last(model, named, int(argument))
    if kind == "block" and _NUMBER.fullmatch(argument):
        return _block(model, named, int(argument))
    if kind == "regex" and argument:
        try:
            return {name for name, found in zip(named, found_in(argument, list(named)), strict=True) if found}
        except BadPattern as error:
            raise ConfigError(
                f"scope {part[:200]!r} is not a regular expression that can be used: {error}. "
                "Remedy: correct the pattern."
            ) from None
    if part == "dominant":
        raise ConfigError(
            "scope dominant is found by a forward of the model's weights. Remedy: scope block:N with the N that "
            "zotune.dominant_layer gives, or that `zotune train --scope dominant` prints."
        )
    raise ConfigError(
        f"unknown scope {part!r}. Remedy: full, norms, biases, head, last:N, block:N, dominant, lora, prefix, prompt, "
        "scales, bank, sensitive or regex:PATTERN, joined by '&'."
    )


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalisation layer: by its class name, which holds for every family's own RMSNorm too."""
    return bool(_NORM.search(type(module).__name__))


def decays(model: nn.Module, name: str) -> bool:
    """Whether weight decay applies: to parameters of two or more dimensions that no norm owns (never to biases)."""
    owner, leaf = _owner(model, name), name.rpartition(".")[2]
    parameter: Tensor = getattr(owner, leaf)
    return parameter.dim() >= 2 and not is_norm(owner)


def blocks(model: nn.Module) -> tuple[str, nn.ModuleList] | None:
    """The longest list of modules (the last of equals): the transformer blocks, with its name."""
    return max(reversed(block_lists(model)), key=lambda item: len(item[1]), default=None)


def block_lists(model: nn.Module) -> list[tuple[str, nn.ModuleList]]:
    """All lists of modules with their names: an encoder has one, a decoder another.

    A list inside another (a block's experts, or its layers) is a part of a block.
    """
    lists: list[tuple[str, nn.ModuleList]] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer, _ in lists)
        if isinstance(module, nn.ModuleList) and len(module) and not inside:
            lists.append((name, module))
    return lists


def _block(model: nn.Module, named: dict[str, nn.Parameter], number: int) -> set[str]:
    found = blocks(model)
    if found is None or number >= len(found[1]):
        has = "the model has no list of blocks" if found is None else f"{found[0]} has blocks 0 to {len(found[1]) - 1}"
        raise ConfigError(f"scope block:{number}, but {has}. Remedy: another number, or regex:PATTERN.")
    return {name for name in named if name.startswith(f"{found[0]}.{number}.")}


def _last(model: nn.Module, named: dict[str, nn.Parameter], count: int) -> set[str]:
    found = blocks(model)
    if found is None:
        raise ConfigError(
            "scope last:N needs a model with a list of blocks (nn.ModuleList). Remedy: use regex:PATTERN."
        )
    prefix, layers = found
    if count > len(layers):
        raise ConfigError(f"scope last:{count}, but {prefix} has {len(layers)} blocks. Remedy: a smaller N, or full.")
    kept = tuple(f"{prefix}.{i}." for i in range(len(layers) - count, len(layers)))
    chosen = {name for name in named if name.startswith(kept)}
    for name in named:
        inside = name.startswith(f"{prefix}.")
        if not inside and not _in_embeddings(model, name, prefix) and not _in_earlier_stack(model, name, prefix):
            chosen.add(name)
    return chosen


def _in_earlier_stack(model: nn.Module, name: str, blocks_name: str) -> bool:
    """Part of a module with blocks of its own that stands before the one that holds the blocks (T5's encoder)."""
    path, other = blocks_name.split("."), name.split(".")
    shared = next(i for i, (a, b) in enumerate(zip(path, other, strict=False)) if a != b)
    parent = model.get_submodule(".".join(path[:shared]))
    order = [child for child, _ in parent.named_children()]
    if other[shared] not in order or order.index(other[shared]) > order.index(path[shared]):
        return False
    return blocks(parent.get_submodule(other[shared])) is not None


def _in_embeddings(model: nn.Module, name: str, blocks_name: str) -> bool:
    """An embedding table, or a part of the input module around one (BERT's embedding norm): before the blocks."""
    owner = name.rpartition(".")[0]
    if isinstance(model.get_submodule(owner), nn.Embedding):
        return True
    parent = owner.rpartition(".")[0]
    holds_table = any(isinstance(child, nn.Embedding) for child in model.get_submodule(parent).children())
    return holds_table and not blocks_name.startswith(f"{parent}." if parent else "")


def _owner(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name.rpartition(".")[0])


def input_embeddings(model: nn.Module) -> nn.Module | None:
    """The table of tokens of a transformers model; None where there is none."""
    finder: Any = getattr(model, "get_input_embeddings", None)
    try:
        found = finder() if callable(finder) else None
    except (NotImplementedError, AttributeError):  # how transformers and PEFT say that there is none
        return None
    return found if isinstance(found, nn.Module) else None
