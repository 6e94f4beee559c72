"""An adapter bank over a read-only base: low-rank updates are kept as factors, never written. Scope `bank`.

`Bank` stands around a linear layer and computes `base(x) + (x v) u'`. Its parameter `bank_delta` has the shape of the
weight and no memory: one zero, seen (rows, columns) times. It is what a low-rank method perturbs and updates, so that
every such method works as it is. What a method would fold into a weight goes into `u` (rows, rank) and `v` (columns,
rank) instead, in float32, whatever the base is made of. That form is also what a loader of adapters reads.

The rank grows with every new basis until it reaches `most`; from then on the sum is brought back to its best
approximation of that rank (QR of both factors and an SVD between them, in float64). `lost` adds up the Frobenius norms
of what was left out: an upper bound of how far `u v'` is from the sum of all updates.
"""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import handle_torch_function, has_torch_function

from zotune.direction import Factors
from zotune.errors import ConfigError
from zotune.quantised.layers import Around, packed_layers

PARAMETER = "bank_delta"


def low_rank_term(x: Tensor, delta: Tensor) -> Tensor:
    """`x delta'`, (..., rows), of a `bank_delta`: what its stand-in makes of it, and without one nothing."""
    if has_torch_function((delta,)):
        found: Tensor = handle_torch_function(low_rank_term, (delta,), x, delta)
        return found
    return x.new_zeros(*x.shape[:-1], delta.shape[0])


@final
class Bank(Around):
    """`base(x) + (x v) u'`; `u`, `v` and `lost` are buffers. `dtype` is that of the activations."""

    u: Tensor
    v: Tensor
    lost: Tensor

    def __init__(self, base: Any, dtype: torch.dtype, most: int) -> None:
        super().__init__(base)
        self.most = most
        rows, columns, device = base.out_features, base.in_features, base.weight.device
        self.bank_delta = nn.Parameter(torch.zeros((), dtype=dtype, device=device).expand(rows, columns))
        self.register_buffer("u", torch.zeros(rows, 0, device=device))
        self.register_buffer("v", torch.zeros(columns, 0, device=device))
        self.register_buffer("lost", torch.zeros((), dtype=torch.float64, device=device))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        if self.u.shape[1]:
            y = y + functional.linear(functional.linear(x, self.v.t().to(x.dtype)), self.u.to(x.dtype))
        return y + low_rank_term(x, self.bank_delta) if has_torch_function((self.bank_delta,)) else y

    def append(self, change: Factors) -> None:
        """Add `change` to the bank: to the columns that it shares, or as further ones."""
        u, v = change.scale * change.u.float(), change.v.float()
        own, held = v.shape[1], self.v.shape[1]
        if own <= held and torch.equal(self.v[:, held - own :], v):  # folded twice in a window
            self.u = torch.cat((self.u[:, : held - own], self.u[:, held - own :] + u), 1)
            return
        self.u, self.v = torch.cat((self.u, u), 1), torch.cat((self.v, v), 1)
        if held + own > self.most:
            self._shorten()

    def _shorten(self) -> None:
        """The best approximation of rank `most` at most."""
        left, right = torch.linalg.qr(self.u.double()), torch.linalg.qr(self.v.double())
        a, s, b = torch.linalg.svd(left.R @ right.R.t(), full_matrices=False)
        kept = min(self.most, len(s))
        root = s[:kept].sqrt()
        self.u = ((left.Q @ a[:, :kept]) * root).float()
        self.v = ((right.Q @ b[:kept].t()) * root).float()
        self.lost = self.lost + s[kept:].norm()

    def tensors(self, name: str) -> dict[str, Tensor]:
        """What stands for the parameter called `name` in hashes and snapshots."""
        return {f"{name}.{part}": getattr(self, part) for part in ("u", "v", "lost")}

    def take(self, name: str, tensors: dict[str, Tensor]) -> None:
        """Take back what `tensors` gave."""
        for part in ("u", "v", "lost"):
            setattr(self, part, tensors[f"{name}.{part}"].to(self.u.device))


def add_bank(model: nn.Module, most: int) -> nn.Module:
    """`model` with every packed linear layer (without any: every linear layer but the head) in a `Bank`, in place.

    All else is frozen. Raises ConfigError where there is none.
    """
    ask: Any = getattr(model, "get_output_embeddings", lambda: None)
    head = ask()
    linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}
    layers = packed_layers(model) or linear
    if not layers:
        raise ConfigError("scope bank: the model has no linear layers. Remedy: another scope.")
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    model.requires_grad_(False)
    for name, layer in layers.items():
        model.set_submodule(name, Bank(layer, dtype, most))
    return model


def banks(model: nn.Module) -> dict[str, Bank]:
    """The banks of a model by the names of their layers."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Bank)}


def to_peft(model: nn.Module) -> nn.Module:
    """A model with banks as a PEFT model of its base, in place: each bank a LoRA of its rank and of scale 1."""
    found = banks(model)
    if not found:  # before PEFT is asked for, which most models do not need
        return model
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise ConfigError("a bank is exported as a PEFT adapter. Remedy: pip install 'zotune[peft]'.") from None
    from zotune.virtual_tokens import peft_quiet

    for name, bank in found.items():
        model.set_submodule(name, bank.base)
    # A layer that nothing was learned for gets the smallest adapter there is, of zeros.
    ranks = {name: max(1, bank.u.shape[1]) for name, bank in found.items()}
    settings = LoraConfig(
        r=1, lora_alpha=1, target_modules=list(ranks), rank_pattern=ranks, alpha_pattern=ranks, lora_dropout=0.0
    )
    with peft_quiet(0):
        adapted: nn.Module = get_peft_model(model, settings)
    with torch.no_grad():
        for name, bank in found.items():
            if bank.u.shape[1]:
                layer: Any = adapted.get_submodule(f"base_model.model.{name}")
                layer.lora_A["default"].weight.copy_(bank.v.t())
                layer.lora_B["default"].weight.copy_(bank.u)
    return adapted
