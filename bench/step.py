"""One optimizer step beside two plain no_grad forwards of the same sequences; and peak memory beside inference.

    python bench/step.py [--json] [--repeats 7] [--models smollm2-135m,opt-125m-shaped] [--threads 2]

Time: ratios within each turn (baseline, arm, baseline, arm, ...) of one process, their median. Memory: each arm in a
process of its own, the largest resident set. `textbook` is the published in-place scheme written plainly: three passes
of torch.normal over the weights to perturb and restore, one to update, the same forwards.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from common import MODELS, machine, objective, paired, tokens, write
from torch import nn

import zotune

METHODS: dict[str, Callable[[nn.Module], zotune.ZerothOrder]] = {
    "lozo": lambda model: zotune.LoZO(model, lr=1e-9),
    "mezo rademacher": lambda model: zotune.MeZO(model, lr=1e-9, law="rademacher"),
    "mezo gaussian": lambda model: zotune.MeZO(model, lr=1e-9),
    "sparse_mezo": lambda model: zotune.SparseMeZO(model, lr=1e-9),
}
TARGETS = {"lozo": 1.2, "mezo rademacher": 1.5, "mezo gaussian": 1.5, "sparse_mezo": 1.5}
MEMORY_TARGET = 1.15


def two_forwards(model: nn.Module, batch: dict[str, torch.Tensor]) -> None:
    """The floor: what any two-sided step must at least do."""
    with torch.no_grad():
        objective(model, batch)
        objective(model, batch)


def textbook(model: nn.Module, batch: dict[str, torch.Tensor], eps: float = 1e-3, lr: float = 1e-9) -> None:
    """MeZO's algorithm 1 as published: perturb in place, restore in place, the noise drawn anew each time."""

    def move(scale: float) -> None:
        torch.manual_seed(0)
        for parameter in model.parameters():
            z = torch.normal(mean=0.0, std=1.0, size=parameter.shape, dtype=parameter.dtype)
            parameter.data = parameter.data + scale * z

    with torch.inference_mode():
        move(eps)
        plus = objective(model, batch).mean()
        move(-2 * eps)
        minus = objective(model, batch).mean()
        move(eps)
        move(-lr * float(plus - minus) / (2 * eps))


def time_model(name: str, repeats: int) -> dict[str, Any]:
    """All arms on one model."""
    model, batch = MODELS[name](), tokens()
    optimizers = {method: build(model) for method, build in METHODS.items()}
    arms = {method: (lambda o=o: o.step(objective, batch)) for method, o in optimizers.items()}
    found: dict[str, Any] = paired(lambda: two_forwards(model, batch), arms, repeats)
    for method, o in optimizers.items():
        found[method]["evaluation"] = o.evaluator.mode + (f" ({o.evaluator.reason})" if o.evaluator.reason else "")
    found |= paired(
        lambda: two_forwards(model, batch), {"textbook": lambda: textbook(model, batch)}, max(3, repeats // 2)
    )
    return found


def peak(name: str, arm: str, threads: int) -> int:
    """Peak resident bytes of a process that loads the model and runs the arm."""
    command = [sys.executable, __file__, "--alone", name, arm, "--threads", str(threads)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def alone(name: str, arm: str) -> None:
    """In a process of its own: three rounds of one arm, then the peak on stdout."""
    model, batch = MODELS[name](), tokens()
    if arm == "inference":
        for _ in range(3):
            two_forwards(model, batch)
    else:
        optimizer = METHODS[arm](model)
        for _ in range(3):
            optimizer.step(objective, batch)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = ["# One step beside two plain forwards", ""]
    lines += [f"{key}: {value}  " for key, value in result["machine"].items() if value is not None]
    lines += ["", "Batch 16 x 32 tokens, float32, full scope, head at one position for every arm.", ""]
    for name, model in result["models"].items():
        lines += [
            f"## {name}",
            "",
            "| arm | s/step | two forwards s | ratio (min-max) | target | peak memory / inference |",
        ]
        lines += ["|---|---|---|---|---|---|"]
        for arm, row in model["time"].items():
            memory = model["memory"].get(arm)
            of = f"{memory / model['memory']['inference']:.2f} ({memory / 1e6:.0f} MB)" if memory else ""
            target = f"{TARGETS[arm]:.1f}" if arm in TARGETS else ""
            lines.append(
                f"| {arm} | {row['seconds']:.2f} | {row['baseline_seconds']:.2f} | {row['ratio']:.2f} "
                f"({row['ratio_min']:.2f}-{row['ratio_max']:.2f}) | {target} | {of} |"
            )
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--alone", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.alone:
        alone(*options.alone)
        return
    result: dict[str, Any] = {"machine": machine(), "models": {}}
    for name in options.models.split(","):
        memory = {arm: peak(name, arm, options.threads) for arm in ("inference", *METHODS)}
        result["models"][name] = {"memory": memory, "time": time_model(name, options.repeats)}
    write("step", result, table(result))
    print(json.dumps(result) if options.json else table(result))


if __name__ == "__main__":
    main()
