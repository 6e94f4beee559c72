"""One optimizer step beside two plain no_grad forwards of the same tokens, and beside the textbook MeZO step.

    python bench/step.py [--json] [--quick] [--check] [--repeats 7] [--threads 2]
        [--models smollm2-135m,opt-125m-shaped] [--device cuda --dtype bfloat16 --models opt-13b-shaped]

(a) `two_forwards`: what any two-sided step must at least do, on the batch that the step gets (head at one position).
(b) `textbook`: the published scheme written plainly: three in-place passes of torch.normal over the weights to perturb
and restore, one to update; every candidate of an example its own sequence, logits of all positions, and batches as they
come: 16 sentences of all lengths, padded to the longest. (a) and the step get 16 sentences of one length bucket, as
`zotune train` makes them; the sentences of both have the same mean length.

Ratios are the medians of ratios within each turn (baseline, arm, baseline, arm, ...) of one process. Low-rank updates
are folded every 50 steps, as `zotune train` does; a fiftieth of the fold's time is added to each of their steps.
Memory: each arm in a process of its own, the largest resident set (or allocation of the GPU) over plain inference's.
`--quick` takes a small model and no memory, to see within a minute that all of it works. `--check` fails where a ratio
is far beyond its target (3 times, a quarter of the lead): what a busy machine does to ratios stays within.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import as_published, machine, model_on, objective, paired, seconds, tokens, write
from torch import nn

import zotune

WINDOW = 50
METHODS: dict[str, Callable[[nn.Module], zotune.ZerothOrder]] = {
    "lozo": lambda model: zotune.LoZO(model, lr=1e-9, interval=WINDOW, fold_every=WINDOW, graphs="auto"),
    "mezo rademacher": lambda model: zotune.MeZO(model, lr=1e-9, law="rademacher", graphs="auto"),
    "mezo gaussian": lambda model: zotune.MeZO(model, lr=1e-9, graphs="auto"),
    "sparse_mezo": lambda model: zotune.SparseMeZO(model, lr=1e-9, law="rademacher", graphs="auto"),
}
# step / (a) at most, (b) / step at least, memory / inference at most
TARGETS = {
    "lozo": (1.10, 6, 1.15),
    "mezo rademacher": (1.35, 4, 1.15),
    "mezo gaussian": (1.8, 4, 1.15),
    "sparse_mezo": (1.5, 4, 1.15),
}
KEYS = ("model", "device", "dtype", "method", "batch", "tokens", "step_seconds", "two_forwards_seconds")
KEYS += ("textbook_seconds", "step_over_two_forwards", "textbook_over_step", "peak_over_inference")


def two_forwards(model: nn.Module, batch: dict[str, torch.Tensor]) -> None:
    """The floor."""
    with torch.no_grad():
        objective(model, batch)
        float(objective(model, batch).mean())


def textbook(model: nn.Module, batch: dict[str, torch.Tensor], eps: float = 1e-3, lr: float = 1e-9) -> None:
    """MeZO's algorithm 1 as published: perturb in place, restore in place, the noise drawn anew each time."""

    def move(scale: float) -> None:
        torch.manual_seed(0)
        for parameter in model.parameters():
            z = torch.normal(mean=0.0, std=1.0, size=parameter.shape, dtype=parameter.dtype, device=parameter.device)
            parameter.data = parameter.data + scale * z

    with torch.no_grad():
        move(eps)
        plus = as_published(model, batch).mean()
        move(-2 * eps)
        minus = as_published(model, batch).mean()
        move(eps)
        move(-lr * float(plus - minus) / (2 * eps))


def load(name: str, device: str, dtype: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A model and its batch."""
    model = model_on(name, device, dtype)
    return model, {key: value.to(device) for key, value in tokens().items()}


def time_model(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of one model, without memory."""
    model, batch = load(name, options.device, options.dtype)
    baseline = lambda: two_forwards(model, batch)  # noqa: E731
    mixed = {key: value.to(options.device) for key, value in tokens(bucketed=False).items()}
    book = paired(baseline, {"textbook": lambda: textbook(model, mixed)}, max(3, options.repeats // 2))["textbook"]
    rows = []
    for method, build in METHODS.items():
        optimizer = build(model)
        arm = lambda o=optimizer: o.step(objective, batch)  # noqa: E731
        found = paired(baseline, {method: arm}, options.repeats)[method]
        folding = [_folding(optimizer, arm) for _ in range(3)] if optimizer.fold_every > 1 else [0.0]
        share = median(folding) / optimizer.fold_every
        step = found["seconds"] + share
        ratio = found["ratio"] + share / found["baseline_seconds"]
        row = (name, options.device, options.dtype, method, len(batch["label"]), int(batch["attention_mask"].sum()))
        row += (step, found["baseline_seconds"], book["seconds"], ratio)
        row += (book["ratio"] / ratio, None)
        extra = {
            "spread": [found["ratio_min"], found["ratio_max"]],
            "fold_seconds": median(folding),
            "evaluation": optimizer.evaluator.mode
            + (f" ({optimizer.evaluator.reason})" if optimizer.evaluator.reason else ""),
        }
        rows.append(dict(zip(KEYS, row, strict=True)) | extra)
        del optimizer
    return rows


def _folding(optimizer: zotune.ZerothOrder, step: Callable[[], Any]) -> float:
    """Seconds of writing the waiting updates into the weights."""
    step()
    return seconds(optimizer.fold)


def peak(name: str, arm: str, options: argparse.Namespace) -> int:
    """Peak bytes of a process that loads the model and runs the arm."""
    command = [sys.executable, __file__, "--alone", name, arm, "--threads", str(options.threads)]
    command += ["--device", options.device, "--dtype", options.dtype]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def alone(name: str, arm: str, options: argparse.Namespace) -> None:
    """In a process of its own: three rounds of one arm, then the peak on stdout."""
    model, batch = load(name, options.device, options.dtype)
    forget_peak()
    optimizer = METHODS[arm](model) if arm in METHODS else None
    for _ in range(3):
        if optimizer is None:
            two_forwards(model, batch)
        else:
            optimizer.step(objective, batch)
    if optimizer is not None:
        optimizer.fold()
    if options.device == "cuda":
        print(torch.cuda.max_memory_allocated())
    else:
        print(peak_resident())


def forget_peak() -> None:
    """Loading a model can take more memory than running it; where the system allows (Linux) its peak is forgotten."""
    gc.collect()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_resident() -> int:
    """The largest resident set in bytes, since `forget_peak` where that works."""
    with contextlib.suppress(OSError):
        found = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
        return int(found[0].split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def table(rows: list[dict[str, Any]], where: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = ["# One step beside two plain forwards and the textbook step", ""]
    lines += [f"{key}: {value}  " for key, value in where.items() if value is not None]
    lines += ["", "Full scope. In brackets: the target, then the range over the turns.", ""]
    lines += ["| model | method | s/step | two forwards s | step / two forwards | textbook / step | peak / inference |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for row in rows:
        most, least, memory = TARGETS[row["method"]]
        low, high = row["spread"]
        of = "" if row["peak_over_inference"] is None else f"{row['peak_over_inference']:.2f} [{memory}]"
        lines.append(
            f"| {row['model']} {row['dtype']} | {row['method']} | {row['step_seconds']:.3f} | "
            f"{row['two_forwards_seconds']:.3f} | {row['step_over_two_forwards']:.2f} [{most}] "
            f"({low:.2f} to {high:.2f}) | {row['textbook_over_step']:.1f} [{least}] | {of} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, write results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--models", default="smollm2-135m,opt-125m-shaped")
    parser.add_argument("--alone", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.alone:
        alone(*options.alone, options)
        return
    if options.quick:
        options.models, options.repeats = "opt-30m-shaped", 3
    rows = []
    for name in options.models.split(","):
        found = time_model(name, options)
        if not options.quick:
            inference = peak(name, "inference", options)
            for row in found:
                row["peak_over_inference"] = peak(name, row["method"], options) / inference
        rows += found
    where = machine()
    if not options.quick:
        write("step", {"machine": where, "rows": rows}, table(rows, where))
    print(json.dumps([{key: row[key] for key in KEYS} for row in rows]) if options.json else table(rows, where))
    if options.check:
        check(rows)


def check(rows: list[dict[str, Any]]) -> None:
    """Ends with status 1 where a ratio is far from its target."""
    for row in rows:
        most, least, _ = TARGETS[row["method"]]
        if row["step_over_two_forwards"] > 3 * most or row["textbook_over_step"] < least / 4:
            raise SystemExit(
                f"{row['model']} {row['method']}: a step takes {row['step_over_two_forwards']:.2f} times two forwards "
                f"(target {most}), the textbook's {row['textbook_over_step']:.2f} times a step (target {least})"
            )


if __name__ == "__main__":
    main()
