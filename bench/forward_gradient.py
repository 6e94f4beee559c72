"""The forward gradient beside MeZO: what an exact slope along the same directions would give.

    python bench/forward_gradient.py [--json] [--steps 60] [--seeds 3] [--scope norms&last:6] [--lr 4e-3] [--rows 400]
        [--batch 16]

The reference row of benchmarks of zeroth-order methods: c = z . grad L from one forward-mode pass (torch.func.jvp)
replaces the finite difference; direction, update and data are MeZO's, bit for bit the same z. It holds the tangents of
all activations and of z, so it is no method of the library. Prints the loss on held-out rows before and after, for both
and for several seeds, and how far the slopes are apart.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from typing import Any

import torch
import transformers
from common import machine, seconds, write
from torch import Tensor, nn
from torch.nn import functional

import zotune
from zotune.demo.assets import demo_data, demo_model
from zotune.noise import Key
from zotune.records import StepRecord

Batch = dict[str, Tensor]


def slope(optimizer: zotune.ZerothOrder, objective: Callable[[nn.Module, Batch], Tensor], batch: Batch) -> float:
    """z . grad of the mean loss at the present weights, with the z of the optimizer's next step."""
    key, model = Key(optimizer.seed, optimizer.steps), optimizer.model
    targets = {target.name: target for target in optimizer.perturber.targets()}
    weights = {name: target.data for name, target in targets.items()}
    tangents = {
        name: optimizer.direction.block(t, key, 0, t.data.numel()).view(t.data.shape).to(t.data.dtype)
        for name, t in targets.items()
    }

    class Wrapped(nn.Module):
        """The objective as a module, so that its parameters can be swapped."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, batch: Batch) -> Tensor:
            return objective(self.inner, batch).mean()

    wrapped = Wrapped()

    def at(moved: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(wrapped, {f"inner.{name}": w for name, w in moved.items()}, (batch,))

    with torch.no_grad():
        return float(torch.func.jvp(at, (weights,), (tangents,))[1])


def step(optimizer: zotune.ZerothOrder, objective: Callable[[nn.Module, Batch], Tensor], batch: Batch) -> float:
    """One forward-gradient step through the optimizer's own update; returns the slope."""
    exact, eps = slope(optimizer, objective, batch), optimizer.arguments["eps"]
    rates = tuple(float(group["lr"]) for group in optimizer.param_groups)
    # The two losses whose central difference is this slope.
    optimizer.replay(StepRecord(optimizer.steps, rates, (exact * eps, -exact * eps)))
    return exact


def batches(tokenizer: Any, rows: list[dict[str, Any]], size: int) -> list[Batch]:
    """Prompts of one length per batch, padded on the left."""
    tokenizer.padding_side = "left"
    found = []
    for first in range(0, len(rows), size):
        part = rows[first : first + size]
        texts = [f"{row['text']} It was" for row in part]
        encoded = tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=64)
        label = torch.tensor([row["label"] for row in part])
        found.append({"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"], "label": label})
    return found


def objective_of(words: list[int]) -> Callable[[nn.Module, Batch], Tensor]:
    """Cross entropy of the label's word against the other one, for each example."""

    def objective(model: nn.Module, batch: Batch) -> Tensor:
        logits = model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], logits_to_keep=1, use_cache=False
        ).logits[:, -1, words]
        return functional.cross_entropy(logits.float(), batch["label"], reduction="none")

    return objective


def held_out(model: nn.Module, objective: Callable[[nn.Module, Batch], Tensor], parts: list[Batch]) -> float:
    """The mean loss."""
    with torch.inference_mode():
        return float(torch.cat([objective(model, part) for part in parts]).mean())


def trained(kind: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One run of `mezo` or `forward gradient`: loss before and after, seconds."""
    torch.manual_seed(0)
    folder, data = demo_model(), demo_data()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    # torch's fused attention has no forward-mode rule; both rows run the plain one.
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    words = [tokenizer(f" {word}")["input_ids"][0] for word in ("terrible", "great")]
    objective = objective_of(words)
    rows = [json.loads(line) for line in data.train.read_text(encoding="utf-8").splitlines()[: options.rows]]
    tests = [json.loads(line) for line in data.test.read_text(encoding="utf-8").splitlines()[: options.rows // 2]]
    train, test = batches(tokenizer, rows, options.batch), batches(tokenizer, tests, options.batch)
    optimizer = zotune.MeZO(model.eval(), lr=options.lr, eps=3e-3, scope=options.scope, seed=seed, lanes="off")
    before, apart = held_out(model, objective, test), []

    def run() -> None:
        for at in range(options.steps):
            batch = train[at % len(train)]
            if kind == "mezo":
                exact = slope(optimizer, objective, batch) if at < 5 else math.nan
                optimizer.step(objective, batch)
                apart.append(abs(optimizer.probes[0].coef - exact) / abs(exact))
            else:
                step(optimizer, objective, batch)

    taken = seconds(run)
    near = [value for value in apart if value == value]
    after = held_out(model, objective, test)
    return {
        "kind": kind, "seed": seed, "loss_before": before, "loss_after": after, "seconds": taken,
        "slope_error": max(near) if near else None,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--scope", default="norms&last:6")
    options = parser.parse_args()
    runs = [trained(kind, seed, options) for seed in range(options.seeds) for kind in ("mezo", "forward gradient")]
    result = {"machine": machine(), "options": vars(options), "runs": runs}
    text = table(result)
    write("forward_gradient", result, text)
    print(json.dumps(result) if options.json else text)


def table(result: dict[str, Any]) -> str:
    """The results as Markdown."""
    options = result["options"]
    lines = ["# The forward gradient beside MeZO", ""]
    lines += [f"{key}: {value}  " for key, value in result["machine"].items() if value is not None]
    lines += [
        "", f"SmolLM2-135M-Instruct, {options['rows']} movie sentences in batches of {options['batch']}, "
        f"{options['steps']} steps, scope {options['scope']}, lr {options['lr']:g}, eps 3e-3; the loss is of "
        f"{options['rows'] // 2} held-out sentences. Slope error: how far MeZO's slope is from the exact one, as a "
        "share of it, at most in its first five steps.", "",
        "| kind | seed | held-out loss before | after | slope error |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for run in result["runs"]:
        error = "" if run["slope_error"] is None else f"{run['slope_error']:.1e}"
        lines.append(
            f"| {run['kind']} | {run['seed']} | {run['loss_before']:.4f} | {run['loss_after']:.4f} | {error} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
