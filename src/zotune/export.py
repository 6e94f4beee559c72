"""`zotune export`: a run's weights in the formats that other tools read. No format of our own.

A folder is written aside and renamed when whole, so a kill leaves all of it or nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from zotune.adapters import added_by, can_merge, for_others, is_adapter
from zotune.aside import whole_folder
from zotune.config import TrainConfig
from zotune.disk import written
from zotune.errors import ConfigError
from zotune.head import untie
from zotune.load import load_to_replay, load_tokenizer, quiet
from zotune.model_folder import refuse_filled
from zotune.quantised.layers import packed_layers
from zotune.resolve import config_of
from zotune.revisit import replay_onto
from zotune.run import RunPaths
from zotune.watch import Watch

Form = Literal["merge", "adapter", "delta"]
DELTA = "delta.safetensors"


def export(
    run: str | Path,
    to: Path,
    watch: Watch,
    form: Form | None = None,
    force: bool = False,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Rebuild a run's weights from its journal and write them to the folder `to`.

    form: "merge" a Hugging Face model with LoRA folded into it, "adapter" a PEFT adapter, "delta" trained minus base
    weights of the parameters in scope, in one safetensors file; None is "adapter" for a run with scope lora, prefix or
    prompt, and "merge" otherwise. Returns form, to, bytes, steps, weights_sha256. Raises ConfigError for an adapter of
    a run that trained none, and for merging virtual tokens or adapters of shared weights, RunError for a folder that
    holds something (unless `force`) or cannot be written, and what a replay raises.
    """
    paths = RunPaths(run).check()
    config = config_of(paths, trust_remote_code)
    form = form or ("adapter" if is_adapter(config.scope) else "merge")
    if form == "merge" and not can_merge(config.scope):
        raise ConfigError(
            f"{paths.folder} trained virtual tokens, which are no weights of the model. Remedy: --adapter or --delta."
        )
    if form == "adapter" and not is_adapter(config.scope):
        raise ConfigError(
            f"{paths.folder} trained scope {config.scope!r}, which makes no adapter. Remedy: --merge or --delta."
        )
    refuse_filled(to, force)
    model, offload = load_to_replay(config)
    beside = is_adapter(config.scope) or added_by(config.scope) == "sensitive"
    if form == "merge" and beside and packed_layers(model):
        remedy = "--adapter, which any loader puts on the same packed base" if is_adapter(config.scope) else "--delta"
        raise ConfigError(
            f"{paths.folder} trained numbers beside packed weights, which would round them away. Remedy: {remedy}."
        )
    before = _copy_in_scope(paths, model) if form == "delta" else {}
    found = replay_onto(paths, model, watch, None, offload, config)

    def fill(folder: Path) -> None:
        if form == "delta":
            _write_delta(folder, model, before, found)
        else:
            write_model(folder, model, config, merge=form == "merge")

    written = publish(to, fill, force)
    return {
        "form": form,
        "to": str(to),
        "bytes": written,
        "steps": found["steps"],
        "weights_sha256": found["weights_sha256"],
    }


def write_model(folder: Path, model: nn.Module, config: TrainConfig, merge: bool = True) -> None:
    """Write `model` and its tokenizer as `from_pretrained` reads them, into an existing folder.

    A model with adapters is written as the base model with them folded in; with merge=False the adapter alone.
    """
    plain: Any = for_others(model)
    if merge and hasattr(plain, "merge_and_unload"):
        plain = _merged(plain)
    with quiet():
        plain.save_pretrained(folder)
        load_tokenizer(config).save_pretrained(folder)


def _merged(model: Any) -> Any:
    """A PEFT model as its base with the adapters folded in, in place.

    A head that shares its matrix with the input embeddings gets its own where either has an adapter: what is folded
    into one of them is no part of the other. Raises ConfigError where they cannot be parted.
    """
    reason = "they share weights with other parts of the model"
    try:
        if _shares(model):
            untie(model)
    except ConfigError as error:
        reason = str(error).partition(" Remedy")[0]
    else:
        if not _shares(model):
            return model.merge_and_unload()
    raise ConfigError(f"the adapters cannot be folded in: {reason.rstrip('.')}. Remedy: --adapter.")


def _shares(model: nn.Module) -> bool:
    """Whether a layer under an adapter has a weight that stands in another place too."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    # A module may stand below two others, of which one has put an adapter around it.
    layers = (layer for module in model.modules() for layer in module.children())
    places = Counter(id(weight) for layer in layers for weight in layer.parameters(recurse=False))
    under = [module.get_base_layer() for module in model.modules() if isinstance(module, BaseTunerLayer)]
    return any(places[id(weight)] > 1 for layer in under for weight in layer.parameters(recurse=False))


def publish(to: Path, fill: Callable[[Path], None], force: bool = False) -> int:
    """Fill the folder `to`, which is there whole or not at all. Returns its bytes.

    Raises RunError when `to` holds something (unless `force`, which replaces it) or the disk refuses.
    """
    refuse_filled(to, force)
    with written(to, "choose another --to"), whole_folder(to) as aside:
        fill(aside)
        return sum(path.stat().st_size for path in aside.rglob("*") if path.is_file())


def _copy_in_scope(paths: RunPaths, model: nn.Module) -> dict[str, Tensor]:
    named = dict(model.named_parameters())
    names = [parameter["name"] for parameter in paths.recorded()[0].get("parameters", [])]
    return {name: named[name].detach().clone() for name in names if name in named}


def _write_delta(folder: Path, model: nn.Module, before: dict[str, Tensor], found: dict[str, Any]) -> None:
    """Trained minus base, float64 for float32 weights and float32 for 16-bit ones: base + delta, rounded once to the
    dtype of the weights, is the trained weight.
    """
    from safetensors.torch import save_file

    named, delta = dict(model.named_parameters()), {}
    for name, base in before.items():
        wide = torch.float64 if base.dtype in (torch.float32, torch.float64) else torch.float32
        delta[name] = (named[name].detach().to(wide) - base.to(wide)).cpu()
    about = {"format": "pt", "steps": str(found["steps"]), "weights_sha256": str(found["weights_sha256"])}
    save_file(delta, folder / DELTA, about)
