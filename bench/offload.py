"""An 8B-shaped model trained in far less memory than its weights take, and what offloading costs a small one.

    python bench/offload.py [--json] [--cap-gib 4] [--steps 3] [--layers 32] [--methods lozo,mezo] [--folder DIR]
                            [--parts build,capped,small]

Builds random bfloat16 weights of Llama's 8B shape, block by block, in a new folder that is deleted at the end, or in
DIR, where they stay for the next call (16 GB, and 14 GB more while a run's blocks lie beside them). Each method trains
on them in a process of its own whose memory is limited by a control group (version 1, needs root; without one the cap
is not set, and the result says so). The group counts everything: anonymous memory, and the system's cache of files,
which fills what is left of the cap and is given up at once. So the peak that matters is that of anonymous memory,
sampled every 20 ms from the group's own counter.

The small model is SmolLM2-135M: the same steps with and without offload in turn, and the hash of the weights.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from common import RESULTS, machine, objective, smollm2, tokens, write
from safetensors.torch import save_file
from torch import Tensor, nn

import zotune
from zotune.engines.offload import Offload
from zotune.optimizer import ZerothOrder
from zotune.scope import block_lists
from zotune.weights import weights_sha256

GROUPS = Path("/sys/fs/cgroup/memory")
METHODS: dict[str, Callable[..., ZerothOrder]] = {
    "lozo": lambda model, **options: zotune.LoZO(model, lr=1e-6, eps=1e-3, fold_every=50, **options),
    "mezo": lambda model, **options: zotune.MeZO(model, lr=1e-6, eps=1e-3, law="rademacher", **options),
}
LLAMA_8B = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8,
    "vocab_size": 128256, "rope_theta": 500000.0, "tie_word_embeddings": False,
}  # fmt: skip


def build(folder: Path, layers: int) -> int:
    """Random weights in files of one block each. Returns their bytes."""
    config = transformers.LlamaConfig(**LLAMA_8B, num_hidden_layers=layers, dtype="bfloat16")
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    prefixes = [f"{name}.{i}." for name, each in block_lists(model) for i in range(len(each))]
    files: dict[str, dict[str, Tensor]] = {}
    for name, parameter in model.named_parameters():
        place = next((i for i, prefix in enumerate(prefixes) if name.startswith(prefix)), len(prefixes))
        files.setdefault(f"model-{place:05d}.safetensors", {})[name] = parameter
    where, total = {}, 0
    of_shape: dict[torch.Size, Tensor] = {}  # blocks are alike: what is measured does not depend on the values
    for file, named in files.items():
        for parameter in named.values():
            if parameter.shape not in of_shape:
                of_shape[parameter.shape] = drawn(parameter)
        same = {name: of_shape[parameter.shape].clone() for name, parameter in named.items()}
        save_file(same, folder / file, {"format": "pt"})
        forget(folder / file)
        where |= dict.fromkeys(named, file)
        total += sum(parameter.nbytes for parameter in named.values())
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": where})
    )
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    return total


def drawn(like: Tensor) -> Tensor:
    """Random values for a parameter, the same in every run."""
    if like.dim() < 2:
        return torch.ones(like.shape, dtype=like.dtype)
    found = torch.empty(like.shape, dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(like.numel())
    for rows in found.split(1 << 10):
        rows.copy_(torch.randn(rows.shape, generator=generator) * 0.02)
    return found


def forget(path: Path) -> None:
    """Write a file out and drop it from the system's cache: who reads it next reads the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


class Peak(threading.Thread):
    """The most anonymous memory seen: of the control group where there is one, else of this process."""

    def __init__(self, group: Path | None) -> None:
        super().__init__(daemon=True)
        self._file, self._word = (
            (group / "memory.stat", "total_rss ") if group else (Path("/proc/self/status"), "RssAnon:")
        )
        self._unit = 1 if group else 1024
        self.bytes = 0
        self._over = threading.Event()

    def look(self) -> None:
        line = next(line for line in self._file.read_text().splitlines() if line.startswith(self._word))
        self.bytes = max(self.bytes, int(line.split()[1]) * self._unit)

    def run(self) -> None:
        while not self._over.wait(0.02):
            self.look()

    def stop(self) -> int:
        self._over.set()
        self.look()
        return self.bytes


def child(folder: Path, method: str, steps: int, group: Path | None) -> dict[str, Any]:
    """Load, train, hash; in a process whose memory is capped."""
    peak = Peak(group)
    peak.start()
    begun = time.perf_counter()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    offload = Offload(model, home="disk", folder=folder)
    optimizer = METHODS[method](model, offload=offload)
    loaded = time.perf_counter() - begun
    ids = torch.randint(20, 40_000, (2, 8), generator=torch.Generator().manual_seed(1))
    batch = {"input_ids": ids, "labels": ids}
    begun = time.perf_counter()
    optimizer.evaluator.decide(language, batch, optimizer.estimator.points(0, 0))
    decided = time.perf_counter() - begun
    rows = []
    for _ in range(steps):
        before, came = (offload.brought, offload.sent), dict(offload.crossings)
        begun = time.perf_counter()
        loss = optimizer.step(language, batch)
        seconds = time.perf_counter() - begun
        crossed = {offload.crossings[name] - count for name, count in came.items()}
        moved = {"brought_bytes": offload.brought - before[0], "sent_bytes": offload.sent - before[1]}
        rows.append({"seconds": seconds, "loss": loss, "crossings_of_each_block": sorted(crossed), **moved})
        print(method, rows[-1], file=sys.stderr, flush=True)
    begun = time.perf_counter()
    sha256 = weights_sha256(optimizer.weights())
    return {
        "method": method,
        "lanes": optimizer.evaluator.mode,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "weights_bytes": offload.sizes.streamed + offload.sizes.resident,
        "device_bytes": offload.device_bytes,
        "blocks": len(offload.parts),
        "load_seconds": loaded,
        "lanes_proof_seconds": decided,
        "steps": rows,
        "settle_and_hash_seconds": time.perf_counter() - begun,
        "weights_sha256": sha256,
        "peak_anonymous_bytes": peak.stop(),
        "group_peak_bytes": int((group / "memory.max_usage_in_bytes").read_text()) if group else None,
    }


def language(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Mean cross entropy of each row's tokens."""
    logits = model(input_ids=batch["input_ids"], use_cache=False).logits[:, :-1].float()
    losses = nn.functional.cross_entropy(logits.transpose(1, 2), batch["labels"][:, 1:], reduction="none")
    return losses.mean(1)


def capped(folder: Path, method: str, options: argparse.Namespace) -> dict[str, Any]:
    """`child` in a process of its own, in a control group with the cap where one can be made."""
    group: Path | None = GROUPS / f"zotune-offload-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(int(options.cap_gib * 2**30)))
    except OSError as error:
        print(f"no cap: {error}", file=sys.stderr)
        group = None
    words = ["--child", method, "--folder", str(folder), "--steps", str(options.steps), "--group", str(group or "")]
    words += ["--threads", str(options.threads)]
    try:

        def enter() -> None:
            if group is not None:
                (group / "tasks").write_text(str(os.getpid()))

        done = subprocess.run(
            [sys.executable, __file__, *words], check=True, stdout=subprocess.PIPE, preexec_fn=enter, text=True
        )
        found: dict[str, Any] = json.loads(done.stdout)
        return found | {"cap_bytes": int(options.cap_gib * 2**30) if group else None}
    finally:
        if group is not None:
            group.rmdir()


def side_by_side(name: str, steps: int, folder: Path) -> dict[str, Any]:
    """The same steps on SmolLM2 with and without offload, in turn."""
    batch, seconds, hashes = tokens(4), {}, {}
    arms: dict[str, ZerothOrder] = {}
    for arm in ("none", "cpu", "disk"):
        model = smollm2()
        offload = None if arm == "none" else Offload(model, home=arm, folder=folder)  # type: ignore[arg-type]
        arms[arm] = METHODS[name](model, offload=offload)
        arms[arm].step(objective, batch)
        seconds[arm] = []
    for _ in range(steps):
        for arm, optimizer in arms.items():
            begun = time.perf_counter()
            optimizer.step(objective, batch)
            seconds[arm].append(time.perf_counter() - begun)
    for arm, optimizer in arms.items():
        hashes[arm] = weights_sha256(optimizer.weights())
    held = {arm: o.offload.device_bytes for arm, o in arms.items() if o.offload is not None}
    weights = sum(parameter.nbytes for parameter in arms["none"].model.parameters())
    return {
        "method": name,
        "steps": steps + 1,
        "seconds": {arm: median(each) for arm, each in seconds.items()},
        "ratio": {arm: median(map(float.__truediv__, seconds[arm], seconds["none"])) for arm in ("cpu", "disk")},
        "device_bytes": {"none": weights, **held},
        "same_weights": len(set(hashes.values())) == 1,
        "weights_sha256": hashes["none"],
    }


def text_of(found: dict[str, Any]) -> str:
    """The results as a page."""
    lines = ["# Offload", ""]
    lines += [f"{key}: {value}  " for key, value in machine().items() if value is not None]
    lines += ["", "Llama's 8B shape, random bfloat16 weights, blocks on disk; a batch is 2 rows of 8 tokens.", ""]
    lines += [
        "| method | weights GB | cap GB | peak anonymous memory GB | s/step | to the device GB/step | back GB/step | "
        "crossings of each block in a step | load s | proof of lanes s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found["capped"]:
        steps = row["steps"]
        crossings = sorted({count for step in steps for count in step["crossings_of_each_block"]})
        cap = "none could be set" if row["cap_bytes"] is None else f"{row['cap_bytes'] / 1e9:.2f}"
        sent = ", ".join(f"{step['sent_bytes'] / 1e9:.2f}" for step in steps)
        seconds = ", ".join(f"{step['seconds']:.0f}" for step in steps)
        lines.append(
            f"| {row['method']} | {row['weights_bytes'] / 1e9:.2f} | {cap} | {row['peak_anonymous_bytes'] / 1e9:.2f} | "
            f"{seconds} | {steps[-1]['brought_bytes'] / 1e9:.2f} | {sent} | "
            f"{', '.join(map(str, crossings))} | {row['load_seconds']:.0f} | {row['lanes_proof_seconds']:.0f} |"
        )
    lines += ["", "The first step has no update of an earlier one to fold. LoZO writes once in 50 steps.", ""]
    lines += ["SmolLM2-135M, float32, 4 sentences, the three arms in turn (median seconds of a step):", ""]
    lines += [
        "| method | no offload s | cpu s (ratio) | disk s (ratio) | weights held MB | with offload MB | same weights |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["small"]:
        s, ratio, held = row["seconds"], row["ratio"], row["device_bytes"]
        lines.append(
            f"| {row['method']} | {s['none']:.2f} | {s['cpu']:.2f} ({ratio['cpu']:.2f}) | "
            f"{s['disk']:.2f} ({ratio['disk']:.2f}) | {held['none'] / 1e6:.0f} | {held['disk'] / 1e6:.0f} | "
            f"{row['same_weights']} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, write results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cap-gib", type=float, default=4.0)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--methods", default="lozo,mezo")
    parser.add_argument("--parts", default="capped,small")
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--child", default=None, help=argparse.SUPPRESS)
    parser.add_argument("--group", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.child:
        group = Path(options.group) if options.group else None
        print(json.dumps(child(options.folder, options.child, options.steps, group)))
        return
    methods, parts = options.methods.split(","), options.parts.split(",")
    # What is not asked for keeps its last result.
    kept = RESULTS / "offload.json"
    found: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {"capped": [], "small": []}

    def note(part: str, row: dict[str, Any]) -> None:
        others = [each for each in found[part] if each["method"] != row["method"]]
        found[part] = sorted([*others, row], key=lambda each: str(each["method"]))
        write("offload", {"machine": machine(), **found}, text_of(found))

    folder = options.folder or Path(tempfile.mkdtemp(prefix="zotune-offload-"))
    folder.mkdir(exist_ok=True)
    try:
        if "small" in parts:
            for method in methods:
                note("small", side_by_side(method, 7, folder))
        if {"build", "capped"} & set(parts) and not (folder / "config.json").exists():
            print(f"built {build(folder, options.layers) / 1e9:.2f} GB", file=sys.stderr, flush=True)
        if "capped" in parts:
            for method in methods:
                note("capped", capped(folder, method, options))
    finally:
        if options.folder is None:
            shutil.rmtree(folder)
    print(json.dumps(found) if options.json else text_of(found))


if __name__ == "__main__":
    main()
