"""Virtual tokens, read before every text: prefix tuning (arXiv 2101.00190) and prompt tuning (arXiv 2104.08691).

Both are PEFT's, so that PEFT loads what was trained. Their first values are those of real random tokens, as MeZO has it
(arXiv 2305.17333, appendix E.5): at step 0 the model computes what it would with these tokens put before the text.
Which tokens these are is a function of the seed; the global random state is not touched.

Unlike MeZO's, the text's positions count the virtual tokens (PEFT's rule): it stands where it would after real ones.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zotune.disk import refusal
from zotune.durable import write_file
from zotune.errors import ConfigError, RunError, UserError
from zotune.machine import is_shortage
from zotune.meter import Meter
from zotune.objective.model_kind import model_kind, most_positions
from zotune.scope import input_embeddings

_TASKS = {"causal": "CAUSAL_LM", "masked": "FEATURE_EXTRACTION", "seq2seq": "SEQ_2_SEQ_LM"}
_VALUES = "embedding"


def add_prefix(model: nn.Module, tokens: int = 5, seed: int = 0, values: Tensor | None = None) -> nn.Module:
    """`model` with `tokens` trainable keys and values before those of the text, in every layer; all else is frozen.

    They begin as the activations of `tokens` random tokens, or as `values` (tokens, layers * 2 * heads * head size). Of
    a masked model those of a text of these tokens alone: the text reads them, they do not read the text.
    Raises ConfigError for an encoder-decoder model, one that takes no keys and values from before, too few positions.
    """
    kind = model_kind(model)
    if kind == "seq2seq":
        raise ConfigError(
            "prefix cannot be added: PEFT's prefix of an encoder-decoder model is shared by pairs of layers. "
            "Remedy: --scope prompt or lora."
        )
    _leave_room(model, tokens)
    if values is None and (kind == "masked" or not _is_meta(model)):  # many masked models have none: a plan says so too
        with Meter() if _is_meta(model) else nullcontext():
            values = activations(model, random_tokens(model, tokens, seed))
    return _add(model, "PrefixTuningConfig", tokens, lambda _: values, task_type=_TASKS[kind], prefix_projection=False)


def add_prompt(model: nn.Module, tokens: int = 5, seed: int = 0) -> nn.Module:
    """`model` with `tokens` trainable input embeddings before those of the text; all else is frozen.

    They begin as the embeddings of `tokens` random tokens. Of an encoder-decoder model the encoder reads them.
    Raises ConfigError for a model without input embeddings or with too few positions.
    """
    _leave_room(model, tokens)
    table = _embeddings(model, "prompt")
    ids = random_tokens(model, tokens, seed)

    def embedded(adapted: Any) -> Tensor:
        with torch.no_grad():
            # Through the module: some scale what they look up.
            found: Tensor = adapted.word_embeddings(ids.to(table.weight.device))
        return found

    return _add(
        model,
        "PromptTuningConfig",
        tokens,
        embedded,
        task_type=_TASKS[model_kind(model)],
        prompt_tuning_init="RANDOM",
        token_dim=table.embedding_dim,
        num_transformer_submodules=1,
    )


def random_tokens(model: nn.Module, tokens: int, seed: int) -> Tensor:
    """(tokens,) int64 ids of the model's vocabulary, on the CPU: a function of the seed."""
    most = _embeddings(model, "prefix").num_embeddings
    return torch.randint(0, most, (tokens,), generator=torch.Generator().manual_seed(seed))


def activations(model: nn.Module, ids: Tensor) -> Tensor:
    """(tokens, layers * 2 * heads * head size) fp32: the keys and values of a text of these tokens, as PEFT lays them.

    Raises ConfigError for a model that fills no cache of keys and values.
    """
    from transformers import DynamicCache

    cache = DynamicCache()  # without the model's config, so that no window cuts it
    device = next(model.parameters()).device
    try:
        with torch.no_grad():
            model(input_ids=ids[None].to(device), past_key_values=cache, use_cache=True)
        if not cache.layers:  # a masked model that does not know what it was given
            raise ValueError("it fills no cache")
        each = [part[0].transpose(0, 1) for layer in cache.layers for part in (layer.keys, layer.values)]  # type: ignore[union-attr, index]
        return torch.stack(each, dim=1).flatten(1).float()
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        if is_shortage(error):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"prefix cannot be added: {type(model).__name__} gives no keys and values ({reason}). "
            "Remedy: --scope prompt or lora."
        ) from None


def read_start(path: Path) -> Tensor | None:
    """The first values of a run's prefix, where the run has written them. Raises RunError for another file.

    They come out of a forward pass, whose last bits another machine, or another number of threads, need not repeat.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.exists():
        return None
    try:
        return load_file(path)[_VALUES]
    except (OSError, SafetensorError, KeyError, ValueError):
        raise RunError(f"{path} does not hold the values of a prefix. Remedy: restore it from a copy.") from None


def write_start(path: Path, model: nn.Module) -> None:
    """Write the values that `read_start` reads, whole or not at all. Raises RunError when the disk refuses."""
    from safetensors.torch import save

    try:
        write_file(path, save({_VALUES: _table(model).detach().cpu().contiguous()}))
    except OSError as error:
        raise refusal(str(path), error, "change its permissions") from error


@contextmanager
def peft_quiet(seed: int = 0) -> Iterator[None]:
    """While PEFT adds something: what it draws from torch's global generator is seeded, and that put back as it was.

    It also warns of an attribute of transformers that is being renamed, of a setting that it corrects by itself, and
    of merging what is tied, which `zotune.export` parts before: nothing a user could act on.
    """
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", message="fan_in_fan_out", category=UserWarning)
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`", category=UserWarning)
        torch.manual_seed(seed)
        yield


def _leave_room(model: nn.Module, tokens: int) -> None:
    """Raises ConfigError where virtual tokens fill all positions that the model has."""
    most = most_positions(model)
    if most is not None and tokens >= most:
        raise ConfigError(
            f"{tokens} virtual tokens leave no room for a text in the model's {most} positions. Remedy: lower "
            "--prefix-tokens."
        )


def _add(model: nn.Module, name: str, tokens: int, first: Callable[[Any], Tensor | None], **settings: Any) -> nn.Module:
    try:
        import peft
    except ImportError:
        raise UserError("virtual tokens need PEFT. Remedy: pip install 'zotune[peft]'.") from None
    with peft_quiet():
        try:
            adapted: nn.Module = peft.get_peft_model(
                model,
                getattr(peft, name)(num_virtual_tokens=tokens, **settings),
            )
        except (ValueError, AttributeError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"virtual tokens cannot be added: {reason}. Remedy: --scope lora.") from None
    table = _table(adapted)
    values = None if _is_meta(adapted) else first(adapted)
    if values is not None and values.shape != table.shape:
        raise ConfigError(
            f"virtual tokens cannot be added: the model has values of shape {tuple(values.shape)} for them, PEFT "
            f"{tuple(table.shape)}. Remedy: --scope lora."
        )
    if values is not None:
        with torch.no_grad():
            table.copy_(values)
    return adapted.eval()


def _table(adapted: Any) -> Tensor:
    found: Tensor = adapted.prompt_encoder[adapted.active_adapter].embedding.weight
    return found


def _embeddings(model: Any, scope: str) -> nn.Embedding:
    found = input_embeddings(model)
    if not isinstance(found, nn.Embedding):
        raise ConfigError(f"scope {scope} needs a model with a table of input embeddings. Remedy: --scope lora.")
    return found


def _is_meta(model: nn.Module) -> bool:
    return any(parameter.is_meta for parameter in model.parameters())
