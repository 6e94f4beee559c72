"""Training over packed bases on the demo's model and sentences: LoRA, a bank of LoZO's updates, and scales (QZO).

python bench/quantised.py [--arms lora-nf4,...] [--steps 60] [--threads 1] [--json]

Each arm runs in a process of its own, so that its peak memory is its own. Needs `pip install 'zotune[quant,peft]'`.
eps and a first learning rate were set by the size of the first slopes; docs/quantised.md says what was tried later.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import machine, sentences_config, write

from zotune.load import load_model
from zotune.quantised.bank import banks
from zotune.revisit import replay
from zotune.train import train
from zotune.watch import Quiet
from zotune.weights import plain_parts

TRAIN_ROWS, TEST_ROWS = 128, 100
COMMON: dict[str, Any] = {
    "batch_size": 16,
    "lr_schedule": "linear",
    "seed": 0,
}
LORA = {"scope": "lora&last:6", "method": "mezo", "lr": 4e-2, "eps": 1e-2}
ARMS: dict[str, dict[str, Any]] = {
    "lora-float32": LORA,
    "lora-int8": {**LORA, "quantize": "int8"},
    "lora-nf4": {**LORA, "lr": 1.5e-2, "quantize": "nf4"},
    "bank-nf4": {"scope": "bank&last:6", "method": "lozo", "lr": 2e-4, "eps": 1e-3, "quantize": "nf4"},
    "qzo-nf4": {"scope": "scales&last:6", "method": "qzo", "lr": 2e-3, "eps": 1e-3, "quantize": "nf4"},
    "qzo-int8": {"scope": "scales&last:6", "method": "qzo", "lr": 4e-6, "eps": 1e-5, "quantize": "int8"},
}


def arm(name: str, steps: int, threads: int) -> dict[str, Any]:
    """One arm in this process."""
    with tempfile.TemporaryDirectory() as place:
        options = {**COMMON, **ARMS[name], "steps": steps, "threads": threads}
        settings = sentences_config(Path(place), TRAIN_ROWS, TEST_ROWS, **options)
        found = train(settings, Quiet())
        resident = status_bytes("VmRSS")
        timing = json.loads((settings.output_dir / "timing.jsonl").read_text().splitlines()[-1])
        again = replay(settings.output_dir, True, Quiet())
        model = load_model(settings)
        trained = {"lora": "lora_", "bank": "bank_delta", "scales": "quant_scale"}[settings.scope.partition("&")[0]]
        # A bank's parameters have no memory; its factors are what a run holds.
        held = plain_parts((n, p) for n, p in model.state_dict(keep_vars=True).items() if trained not in n)
        sizes = {tensor.data_ptr(): tensor.numel() * tensor.element_size() for _, tensor in held}
        return {
            "arm": name,
            "base_bytes": sum(sizes.values()),
            "banks": len(banks(model)),
            "peak_memory_bytes": timing["peak_memory_bytes"],
            "resident_bytes": resident,
            "same_hash": again["weights_sha256"] == found["weights_sha256"],
            **{key: found[key] for key in ("steps", "seconds", "journal_bytes", "eval_examples")},
            **{f"{key}_{when}": found[f"{key}_{when}"] for key in KEYS for when in ("before", "after")},
        }


def status_bytes(key: str) -> int:
    """A figure of this process's memory, in bytes; Linux keeps them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


KEYS = ("accuracy", "low", "high", "loss")


def apart(name: str, steps: int, threads: int) -> dict[str, Any]:
    """One arm in a process of its own."""
    words = [sys.executable, __file__, "--only", name, "--steps", str(steps), "--threads", str(threads)]
    out = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = ["# Packed bases", ""]
    lines += [f"{key}: {value}  " for key, value in result["machine"].items() if value is not None]
    lines += [
        "",
        f"SmolLM2-135M-Instruct, movie sentences: {TRAIN_ROWS} for training, {TEST_ROWS} held out; the last 6 of 30 "
        "blocks are trained, batches of 16, lr falling linearly, one seed. Base: bytes of all tensors that are not "
        "trained (the embeddings, 113 MB, stay float32). Resident: the process after training, libraries included. "
        "Peak: of the whole process; while it loads, pages of the checkpoint's 538 MB file count too, which the system "
        "can take back. float32 weights are such pages too, and were partly taken back. The machine was shared: "
        "seconds are an upper bound.",
        "",
        "| arm | lr | eps | base MB | resident MB | peak MB | before | after (95 %) | loss before, after | s | journal "
        "| replay |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["arms"]:
        settings = result["settings"][row["arm"]]
        memory = " | ".join(f"{row[f'{key}_bytes'] / 1e6:.0f}" for key in ("base", "resident", "peak_memory"))
        after = f"{row['accuracy_after']:.1%} ({row['low_after']:.1%}-{row['high_after']:.1%})"
        lines.append(
            f"| {row['arm']} | {settings['lr']:g} | {settings['eps']:g} | {memory} | {row['accuracy_before']:.1%} "
            f"| {after} | {row['loss_before']:.3f}, {row['loss_after']:.3f} | {row['seconds']:.0f} "
            f"| {row['journal_bytes']} B | {'same hash' if row['same_hash'] else 'DIFFERENT'} |"
        )
    return "\n".join([*lines, "", f"{result['arms'][0]['steps']} steps each.", ""])


def main() -> None:
    """Run the arms one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--only", help="run one arm in this process and print its figures")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.only:
        print(json.dumps(arm(options.only, options.steps, options.threads)))
        return
    torch.set_num_threads(options.threads)
    result: dict[str, Any] = {"machine": machine(), "settings": ARMS, "common": COMMON, "arms": []}
    for name in options.arms.split(","):
        result["arms"].append(apart(name, options.steps, options.threads))
        write("quantised", result, table(result))  # what is measured stays, whatever stops the next arm
    print(json.dumps(result) if options.json else table(result))


if __name__ == "__main__":
    main()
