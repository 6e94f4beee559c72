"""A program for test_sharded.py: optimizers of one's own on models that `fully_shard` shares out.

    python shards.py KIND JOB.json        prints one JSON object

As crowd.py, whose processes these are.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.fsdp  # here, so that no child imports it anew
from crowd import crowd, said
from torch import nn

import zotune
from zotune.errors import UserError
from zotune.methods import METHODS
from zotune.noise import Key
from zotune.optimizer import ZerothOrder

STEPS = 3


def model(dtype: torch.dtype = torch.float32, tied: bool = True) -> nn.Module:
    """A small model whose sizes no number of processes divides."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 61, "hidden_size": 20, "intermediate_size": 23, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "attention_bias": True}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        made: nn.Module = LlamaForCausalLM(LlamaConfig(**sizes, **heads, tie_word_embeddings=tied))
        for parameter in made.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape)
    return made.to(dtype)


def batches() -> list[dict[str, torch.Tensor]]:
    """One for each step."""
    generator = torch.Generator().manual_seed(5)
    return [{"ids": torch.randint(61, (3, 7), generator=generator)} for _ in range(STEPS)]


def loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Losses of the next tokens, one for each row."""
    logits = model(input_ids=batch["ids"]).logits.float()[:, :-1]
    return nn.functional.cross_entropy(logits.transpose(1, 2), batch["ids"][:, 1:], reduction="none").mean(1)


def trained(model: nn.Module, method: str, **options: Any) -> dict[str, Any]:
    """A few steps: losses, a plain forward among them, and the hash of what comes out."""
    arguments = {"lr": 1e-2, "eps": 1e-2, **options}
    optimizer: ZerothOrder = METHODS[method].build(model, **arguments)
    losses = []
    for batch in batches():
        losses.append(optimizer.step(loss, batch))
        with torch.no_grad():
            losses += loss(model, batch).tolist()  # as a user would: nothing may be left over from it
    optimizer.fold()
    carried = {name: tensor.flatten().tolist() for name, tensor in optimizer.carried().items()}
    return {"losses": losses, "sha256": zotune.weights_sha256(dict(model.named_parameters())), "carried": carried}


def sharded(model: Any, **options: Any) -> nn.Module:
    """Block by block, as users do it."""
    from torch.distributed.fsdp import fully_shard

    for layer in model.model.layers:
        fully_shard(layer, **options)
    fully_shard(model, **options)
    return model


def in_group(size: int, what: Callable[[], Any], log: Path) -> dict[str, Any]:
    """Run it in `size` processes of one group: exit codes, and what each of them found."""

    def act(_: int) -> None:
        dist.init_process_group("gloo")
        try:
            print(json.dumps(what()))
        except UserError as error:
            print(json.dumps({"error": str(error)}))
        finally:
            dist.destroy_process_group()

    codes = crowd(size, act, log)
    texts = said(log, size)
    return {"codes": codes, "found": [json.loads(text.splitlines()[-1]) if text.strip() else text for text in texts]}


def methods(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Each case alone and in a group: whether losses, weights and what is carried are the same, or what was said."""
    found: dict[str, Any] = {}
    for name, (size, method, dtype, options) in job["cases"].items():
        kind = getattr(torch, dtype)
        alone = trained(model(kind), method, **options)
        group = in_group(
            size, lambda k=kind, m=method, o=options: trained(sharded(model(k)), m, **o), folder / f"{name}.log"
        )
        errors = [one["error"] for one in group["found"] if isinstance(one, dict) and "error" in one]
        found[name] = {"same": group["found"] == [alone] * size, "errors": errors, "codes": group["codes"]}
    return found


def limits(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What a sharded model cannot do, and what it must be able to."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    from torch.distributed.tensor import Shard

    half = MixedPrecisionPolicy(param_dtype=torch.bfloat16)

    def by_columns() -> Any:
        made = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2))
        fully_shard(made, shard_placement_fn=lambda p: Shard(p.dim() - 1))
        return zotune.MeZO(made)

    def broken_off() -> dict[str, Any]:
        """A forward that ends in an error leaves parts, and the next step is that of a model without the accident."""
        made = sharded(model())
        optimizer = zotune.MeZO(made, lr=1e-2, eps=1e-2)

        def fails(model: nn.Module, batch: Any) -> Any:
            hook = model.model.layers[1].register_forward_hook(lambda *_: 1 / 0)  # type: ignore[union-attr, index]
            try:
                return loss(model, batch)
            finally:
                hook.remove()

        try:
            optimizer.step(fails, batches()[0])
        except ZeroDivisionError:
            pass
        return {"loss": optimizer.step(loss, batches()[0])}

    def noise() -> dict[str, Any]:
        """Whole tensors are nowhere but in a forward; each process has its own rows."""
        from zotune.distributed.sharded import is_part, own_part

        optimizer = zotune.MeZO(sharded(model()), lr=1e-2, eps=1e-2)
        optimizer.step(loss, batches()[0])
        targets = optimizer.perturber.targets()
        parts = [own_part(target.data) for target in targets]
        key = Key(0, 0)
        again = all(
            torch.equal(
                optimizer.direction.block(target, key, 0, target.data.numel())[first : first + part.numel()],
                optimizer.direction.block(target, key, first, first + part.numel()),
            )
            for target, (part, first) in zip(targets, parts, strict=True)
        )
        return {"all": all(is_part(t.data) for t in targets), "again": again, "own": sum(p.numel() for p, _ in parts)}

    cases: dict[str, Callable[[], Any]] = {
        "mixed precision": lambda: trained(sharded(model(), mp_policy=half), "mezo"),
        "by columns": by_columns,
        "another mode": lambda: trained(sharded(model()), "mezo", parallel=zotune.Parallel("data")),
        "example by example": lambda: trained(sharded(model()), "grzo", parallel=zotune.Parallel("data+shard")),
        "checked": lambda: trained(sharded(model()), "mezo", parallel=zotune.Parallel("shard", check_every=1)),
        "broken off": broken_off,
        "noise": noise,
    }
    whole = zotune.MeZO(model(), lr=1e-2, eps=1e-2)  # here first, so that no child imports the models anew
    alone = {"loss": whole.step(loss, batches()[0]), "elements": sum(p.numel() for p in whole.model.parameters())}
    alone["checked"] = trained(model(), "mezo")
    return {"alone": alone} | {name: in_group(2, what, folder / f"{name}.log") for name, what in cases.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    job = json.loads(Path(sys.argv[2]).read_text())
    folder = Path(job["folder"])
    folder.mkdir()
    print(json.dumps({"methods": methods, "limits": limits}[sys.argv[1]](job, folder)))
