"""Training the most sensitive weights alone: a static mask of the linear layers (SensZOQ, arXiv 2406.02913).

    once:   F_i = mean over examples of (dL / dW_i)^2;   S = the `share` of all linear weights with the largest F
    step t: any dense method on W_S; all other weights stay

`Sensitive` stands around a linear layer and computes `base(x) + x D'`, where D is zero but for one trained number,
`sensitive_values`, at every place in S. A dense z on these numbers is the paper's masked z, but nothing is drawn, read
or written for the other 99.9 %, and the base may be packed: then D begins as what packing took from these weights, so
that they keep their precision, as in the paper. The numbers are float32 whatever the base is made of.

The file of a mask is safetensors: for each layer NAME, `NAME.index` (k,) int32, ascending places in the flattened
weight, and `NAME.values` (k,), the weights there. Finding it takes a backward pass for each example, in the memory of
training, once for all tasks; it can be shared.

Differs from the paper in: linear layers other than the head alone (no embeddings, norms and biases); how many examples
of what text is the user's choice. Its code was not available to us.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from zotune.config import TrainConfig
from zotune.disk import refusal
from zotune.durable import sync_file
from zotune.errors import ConfigError, RunError
from zotune.quantised.layers import Around, codes_of, is_packed
from zotune.watch import Watch

PARAMETER = "sensitive_values"
_FORMAT = "zotune sensitive weights 1"
# Numbers of activations that are multiplied by trained values at one time.
_BLOCK = 1 << 22


@final
class Sensitive(Around):
    """`base(x) + x D'`: D (rows, columns) holds `sensitive_values` (k,) at the places `index` (k,) int32."""

    index: Tensor

    def __init__(self, base: Any, index: Tensor, start: Tensor) -> None:
        super().__init__(base)
        self.columns = int(base.in_features)
        self.register_buffer("index", index.to(base.weight.device))
        self.sensitive_values = nn.Parameter(start.to(base.weight.device, torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        rows, columns = self.index // self.columns, self.index % self.columns
        step = max(1, _BLOCK // max(1, x.numel() // x.shape[-1]))
        for first in range(0, len(rows), step):
            part = slice(first, first + step)
            # Activations first: lanes cut them by example.
            terms = x[..., columns[part]] * self.sensitive_values[part]
            y = y.index_add(-1, rows[part], terms.to(y.dtype))
        return y

    def settle(self) -> nn.Module:
        """The base with the trained numbers in its weight. Raises ConfigError for a packed one."""
        if is_packed(self.base):
            raise ConfigError("sensitive weights cannot be written into packed ones. Remedy: export --delta.")
        with torch.no_grad():
            weight = self.base.weight.data.view(-1)
            wide = weight[self.index].to(torch.float32) + self.sensitive_values
            weight[self.index] = wide.to(weight.dtype)
        return self.base  # type: ignore[no-any-return]


def add_sensitive(model: nn.Module, path: Path) -> nn.Module:
    """`model` with the layers of the mask at `path` inside `Sensitive`, in place. Raises ConfigError."""
    layers = _linear(model)
    for name, (index, values) in read_mask(path).items():
        layer: Any = layers.get(name)
        if layer is None or not 0 <= int(index[-1]) < layer.in_features * layer.out_features:
            raise ConfigError(f"{path} is a mask of another model: it names {name}. Remedy: zotune sensitive --model.")
        present = _weights_at(name, layer, index)
        packed = is_packed(layer)
        if not packed and not torch.equal(present, values.to(present)):
            raise ConfigError(
                f"{path} was made of other weights: those of {name} differ. Remedy: zotune sensitive --model."
            )
        start = values.to(present) - present if packed else torch.zeros(len(index))
        model.set_submodule(name, Sensitive(layer, index, start))
    return model


def settle_sensitive(model: nn.Module) -> nn.Module:
    """`model` without the layers of `add_sensitive`, in place: what was trained is in its weights."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, Sensitive)}
    for name, module in found.items():
        model.set_submodule(name, module.settle())
    return model


def _linear(model: nn.Module) -> dict[str, nn.Module]:
    """The linear layers but the head."""
    ask: Any = getattr(model, "get_output_embeddings", lambda: None)
    head = ask()
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}


def _weights_at(name: str, layer: Any, index: Tensor) -> Tensor:
    """The weights of a layer at places of its flattened weight, unpacked where they are packed."""
    if not is_packed(layer):
        found: Tensor = layer.weight.detach().reshape(-1)[index.to(layer.weight.device)]
        return found
    codes = codes_of(name, layer)
    scale, found = codes.scale(), torch.zeros(len(index))
    step = max(1, (1 << 20) // codes.columns)
    for first in range(0, codes.rows, step):
        last = min(first + step, codes.rows)
        here = (index >= first * codes.columns) & (index < last * codes.columns)
        if bool(here.any()):
            rows = codes.read(first, last, torch.float32) * scale[first:last].unsqueeze(-1)
            found[here] = rows.reshape(-1).cpu()[index[here] - first * codes.columns]
    return found


def read_mask(path: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Places and weights by layer. Raises ConfigError for a file that is no mask."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            named = {name: file.get_tensor(name) for name in file.keys()}
            format_ = (file.metadata() or {}).get("format")
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path} cannot be read: {error}. Remedy: make it with `zotune sensitive`.") from None
    layers = sorted({name.rpartition(".")[0] for name in named})
    try:
        found = {name: (named.pop(f"{name}.index"), named.pop(f"{name}.values")) for name in layers}
        whole = format_ == _FORMAT and found and not named and all(_is_part(*part) for part in found.values())
    except KeyError:
        whole = False
    if not whole:
        raise ConfigError(f"{path} is no mask of sensitive weights. Remedy: make it with `zotune sensitive`.")
    return found


def _is_part(index: Tensor, values: Tensor) -> bool:
    ascending = index.dim() == 1 and len(index) > 0 and bool((index.diff() > 0).all()) and int(index[0]) >= 0
    return index.dtype == torch.int32 and ascending and values.shape == index.shape and values.is_floating_point()


def find(config: TrainConfig, share: float, to: Path, watch: Watch) -> dict[str, Any]:
    """Write the mask of the `share` of the linear weights that the rows of `config.train` are most sensitive to.

    One backward pass for each row; the gradients and one float32 number for each weight are in memory meanwhile.
    Returns to, weights, share, layers, examples, bytes. Raises ConfigError for a share that is none, and for rows whose
    loss has no gradient, RunError where the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    from zotune.session import Session

    if not 0 < share < 1:
        raise ConfigError(f"share must be between 0 and 1, got {share}. Remedy: 0.001 is the paper's.")
    if not to.parent.is_dir():
        raise RunError(f"{to} cannot be written: no such folder. Remedy: choose another --to.")
    session = Session(config)
    layers: dict[str, Any] = _linear(session.model)
    scores = squared_gradients(session, layers, watch)
    kept = largest(scores, max(1, round(share * sum(score.numel() for score in scores.values()))))
    tensors = {}
    for name, index in kept.items():
        tensors[f"{name}.index"] = index.to("cpu", torch.int32)
        tensors[f"{name}.values"] = layers[name].weight.detach().reshape(-1)[index].cpu()
    about = {"format": _FORMAT, "share": repr(share), "examples": str(len(session.examples))}
    aside = to.with_name(f".{to.name}.tmp")
    try:
        save_file(tensors, aside, about)
        sync_file(aside)
        aside.rename(to)
    except (OSError, SafetensorError) as error:  # the second is how the library reports a full disk
        aside.unlink(missing_ok=True)
        raise refusal(str(to), error, "choose another --to") from error
    weights = sum(len(index) for index in kept.values())
    return {
        "to": str(to),
        "weights": weights,
        "share": share,
        "layers": len(kept),
        "examples": len(session.examples),
        "bytes": to.stat().st_size,
    }


def squared_gradients(session: Any, layers: Mapping[str, nn.Module], watch: Watch) -> dict[str, Tensor]:
    """The mean over the session's training rows of the squared gradient of each weight, float32 in its shape."""
    from zotune.objective.base import to_device

    weights: dict[str, Any] = {name: layer.weight for name, layer in layers.items()}
    session.model.requires_grad_(False)
    for weight in weights.values():
        weight.requires_grad_(True)
    scores = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in weights.items()}
    watch.say(f"Finding sensitive weights: a backward pass for each of {len(session.examples)} rows.")
    for example in session.examples:
        loss = session.objective(session.model, to_device(session.objective.collate([example]), session.device)).mean()
        if not loss.requires_grad:
            raise ConfigError("these rows have a loss without a gradient. Remedy: rows of plain text.")
        loss.backward()
        for name, weight in weights.items():
            if weight.grad is not None:
                scores[name].addcmul_(weight.grad.float(), weight.grad.float(), value=1 / len(session.examples))
                weight.grad = None
    return scores


def largest(scores: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """The ascending places of the `count` largest numbers (none negative) of all tensors together, by tensor.

    Of equal ones those of the first tensors and places. Tensors without any are left out.
    """
    bits = {name: score.detach().reshape(-1).view(torch.int32) for name, score in scores.items()}
    low, high = -1, 0x7F800000  # non-negative floats are ordered like their bits
    while high - low > 1:
        middle = (low + high) // 2
        if sum(int((each > middle).sum()) for each in bits.values()) >= count:
            low = middle
        else:
            high = middle
    left = count - sum(int((each > high).sum()) for each in bits.values())
    found = {}
    for name, each in bits.items():
        equal = (each == high).nonzero().flatten()[: max(left, 0)]
        left -= len(equal)
        places = torch.cat(((each > high).nonzero().flatten(), equal)).sort().values
        if len(places):
            found[name] = places
    return found
