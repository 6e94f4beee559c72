"""From a config to a model and its tokenizer, from the hub or a folder."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from zotune.adapters import add_for_scope, added_by
from zotune.checkpoint import check_checkpoint, stored_tensors
from zotune.config import TrainConfig
from zotune.errors import ConfigError, UserError
from zotune.machine import is_shortage
from zotune.mapped import clean_mappings, release
from zotune.objective.model_kind import Kind, model_kind, reads_pictures
from zotune.quantised.load import quantisation, settle
from zotune.resolve import check_files
from zotune.weights import aligned

if TYPE_CHECKING:
    from zotune.distributed.group import Group
    from zotune.engines.offload import Offload

# The names of dtypes in a safetensors file.
NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}


def load_tokenizer(config: TrainConfig) -> Any:
    """The tokenizer of the model. Raises UserError when there is none."""
    from transformers import AutoTokenizer

    check_checkpoint(config.model, weights=False)
    with _explained(config.model, "tokenizer"), quiet():
        return AutoTokenizer.from_pretrained(config.model, trust_remote_code=config.trust_remote_code)


def load_model(config: TrainConfig, group: Group | None = None) -> nn.Module:
    """The model on the config's device, in its dtype, in eval mode, with what the scope adds to it.

    With parallel "shard" and "data+shard" its weights are shared out over the group. One that is offloaded stays on the
    CPU, where its weights are mapped from their files: `offloaded` does the rest.

    Raises UserError for a model that cannot be found or read.
    """
    check_checkpoint(config.model)
    _refuse_converted(config)
    if config.device_map is not None:
        _check_map(group)
    sharded = "shard" in (config.parallel or "") and group is not None
    if sharded and added_by(config.scope) == "prefix":
        raise ConfigError(
            "the first values of a prefix come out of a forward, whose last bits sharded processes cannot "
            "compare. Remedy: --scope prompt or lora."
        )
    trust = config.trust_remote_code
    dtype = "auto" if config.dtype == "auto" else getattr(torch, config.dtype)
    device = device_of(config)
    placed: dict[str, Any] = {"device_map": config.device_map}
    if config.quantize is not None:
        _refuse_beside_packed(config, group)
        placed = quantisation(config.quantize, dtype, device)
    with _explained(config.model, "model", config.quantize), quiet():
        _, auto = _architecture(config)
        loaded: tuple[nn.Module, dict[str, Any]] = auto.from_pretrained(
            config.model,
            dtype=dtype,
            trust_remote_code=trust,
            output_loading_info=True,
            use_safetensors=True,
            **placed,
        )
    _refuse_random(config.model, sorted(loaded[1]["missing_keys"]))
    if config.device_map is not None:
        _refuse_away(loaded[0])
        return _aligned(add_for_scope(loaded[0].eval(), config)).eval()
    model = add_for_scope(settle(loaded[0].eval(), config.quantize), config)
    if config.quantize is not None:  # packed layers were loaded onto their device; some of them refuse to be moved
        return model.eval()
    if sharded and group is not None:
        from zotune.distributed.sharded import shard

        group.sharded = True
        return shard(model, device, group.weights).eval()
    if config.offload is not None:
        return model.to("cpu").eval()
    return _aligned(model.to(device)).eval()


def offloaded(config: TrainConfig, model: nn.Module, device: torch.device) -> Offload | None:
    """Stream the blocks of a model that `load_model` made to `device`, where the config says so; the model is changed.

    Raises ConfigError for a model without blocks, RunError for a disk without room for them.
    """
    if config.offload is None:
        return None
    from zotune.engines.offload import Offload

    return Offload(model, device, config.offload, config.output_dir)


def load_to_replay(config: TrainConfig) -> tuple[nn.Module, Offload | None]:
    """The model for a replay of a run, which needs no forward: one that is offloaded, on the CPU.

    `config` is the run's own. Raises DataError where its model has moved.
    """
    check_files(config, ("model", "sensitive"))
    model = load_model(config)
    return model, offloaded(config, model, torch.device("cpu"))


def _refuse_converted(config: TrainConfig) -> None:
    """Weights of another dtype than their files' would all be converted in memory, which is what has no room."""
    if config.offload != "disk" or config.dtype == "auto":
        return
    dtypes = stored(config)[1]
    if dtypes - {NAMES[getattr(torch, config.dtype)]}:
        raise ConfigError(
            f"offload disk reads the weights as they are stored ({', '.join(sorted(dtypes))}), not as {config.dtype}. "
            "Remedy: --dtype auto."
        )


def stored(config: TrainConfig) -> tuple[int, set[str]]:
    """Bytes and dtypes of the tensors in the model's safetensors files, from their headers; 0 where none is here."""
    folder = Path(config.model)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(config.model, local_files_only=True))
        except Exception:  # not in the hub's cache: it is not known how the weights are stored
            return 0, set()
    tensors = list(stored_tensors(folder))
    return sum(size for _, size in tensors), {dtype for dtype, _ in tensors}


def _refuse_beside_packed(config: TrainConfig, group: Group | None) -> None:
    """Raises ConfigError for what moves weights about, which packed layers do not stand."""
    other = [name for name in ("offload", "device_map") if getattr(config, name) is not None]
    other += [f"parallel {config.parallel}"] if "shard" in (config.parallel or "") and group is not None else []
    if other:
        raise ConfigError(f"quantize and {other[0]} cannot be used together. Remedy: leave one of them out.")


def _check_map(group: Group | None) -> None:
    """Raises UserError where a model cannot be spread over devices."""
    if find_spec("accelerate") is None:
        raise UserError("device_map needs accelerate. Remedy: pip install accelerate.")
    if group is not None:
        raise ConfigError(
            "device_map spreads the model over all devices, and so would every process of torchrun. Remedy: one "
            "process, or --parallel shard."
        )


def _refuse_away(model: nn.Module) -> None:
    """accelerate's hooks bring weights that wait elsewhere into their module's forward, past those that stand there."""
    away = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if away:
        raise ConfigError(
            f"the devices do not hold the whole model: {len(away)} tensors, such as {away[0]}, would wait elsewhere. "
            "Remedy: more or larger devices, or --dtype bfloat16."
        )


def _aligned(model: nn.Module) -> nn.Module:
    mappings = clean_mappings()
    for parameter in model.parameters():
        loaded = parameter.data
        parameter.data = aligned(loaded)
        if parameter.data_ptr() != loaded.data_ptr():
            release(loaded, mappings)
    return model


def meta_model(config: TrainConfig) -> nn.Module:
    """The same model without its weights, on the meta device: names, shapes and dtypes. Raises as `load_model`."""
    if config.quantize is not None:
        raise ConfigError(
            "packed layers have no shapes before they are packed, so such a run cannot be planned. "
            "Remedy: leave --quantize out for an upper bound."
        )
    check_checkpoint(config.model, weights=False)
    with quiet(), torch.device("meta"):
        with _explained(config.model, "model"):
            settings, auto = _architecture(config)
            stored = getattr(settings, "dtype", None) or torch.float32
            dtype = stored if config.dtype == "auto" else getattr(torch, config.dtype)
            model: nn.Module = auto.from_config(settings, dtype=dtype, trust_remote_code=config.trust_remote_code)
        model = add_for_scope(model, config)
    return model.eval()


def _architecture(config: TrainConfig) -> tuple[Any, Any]:
    """The model's config and the class of transformers that loads it."""
    import transformers as hf

    classes: dict[Kind, Any] = {
        "causal": hf.AutoModelForCausalLM,
        "masked": hf.AutoModelForMaskedLM,
        "seq2seq": hf.AutoModelForSeq2SeqLM,
    }
    settings = hf.AutoConfig.from_pretrained(config.model, trust_remote_code=config.trust_remote_code)
    kind = model_kind(settings)
    if kind == "causal" and reads_pictures(settings):  # and texts: those alone are trained on
        return settings, hf.AutoModelForImageTextToText
    return settings, classes[kind]


def _refuse_random(model: str, missing: list[str]) -> None:
    """Weights that a checkpoint lacks would be drawn at random, other ones in every process."""
    if missing:
        raise UserError(
            f"the checkpoint of {model!r} lacks {len(missing)} of the model's weights, such as {missing[0]}. "
            "Remedy: take a checkpoint that was saved with its language-model head."
        )


def device_of(config: TrainConfig) -> torch.device:
    """`auto` is the GPU where there is one. Raises ConfigError for a device that torch does not know or have."""
    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.zeros(1, device=name)
        place.item()  # the meta device has no numbers
        return place.device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device {config.device!r} cannot be used: {reason}. Remedy: --device cpu or auto.") from None


@contextmanager
def _explained(model: str, what: str, packed: str | None = None) -> Iterator[None]:
    """What transformers raises within is said of the model: a folder from anywhere may make it raise anything."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_shortage(error):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        remedy = "give a folder with a Hugging Face model, or a hub id while online."
        if packed is not None and "conversion of the weights" in str(error):
            reason = f"its linear layers cannot be packed as {packed} (a row of int4 is groups of 32)."
            remedy = "--quantize int8 or nf4."
        if "trust_remote_code" in str(error):
            reason = "it needs code of its own, which is not run unasked."
            remedy = "read that code, then pass --trust-remote-code."
        if isinstance(error, ImportError):
            remedy = "install what it names, or take another model."
        raise UserError(f"the {what} of {model!r} cannot be loaded: {reason} Remedy: {remedy}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars and notes: a run's own header says what was loaded."""
    from transformers.utils import logging as noisy

    level, bars = noisy.get_verbosity(), noisy.is_progress_bar_enabled()
    noisy.set_verbosity(logging.ERROR)
    noisy.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        noisy.set_verbosity(level)
        if bars:
            noisy.enable_progress_bar()  # type: ignore[no-untyped-call]
