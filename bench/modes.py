"""Tuning modes on a real model and a real task: LoRA, prefix and prompt tuning, the output head; and what they are
compared with, zero-shot, demonstrations and a linear probe.

python bench/modes.py [--modes lora,prefix] [--steps 150] [--json]

SmolLM2-135M-Instruct and movie-review sentences, as in `zotune demo`; MeZO, one seed each. Learning rate and eps were
chosen by a short look at the dev split (docs/log.md); the figures are of the test split.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import machine, write

from zotune.baselines import in_context, linear_probe
from zotune.config import TrainConfig
from zotune.demo.assets import demo_data, demo_model
from zotune.export import export
from zotune.revisit import replay
from zotune.session import Session
from zotune.train import train
from zotune.watch import Quiet

TRAIN_ROWS, TEST_ROWS, SHOTS = 512, 200, 4
COMMON: dict[str, Any] = {
    "template": "{{ text }} It was",
    "label_words": ["terrible", "great"],
    "method": "mezo",
    "batch_size": 8,
    "lr_schedule": "linear",
    "seed": 0,
}
MODES: dict[str, dict[str, Any]] = {
    "lora": {"scope": "lora", "lr": 4e-3, "eps": 1e-3},
    "prefix": {"scope": "prefix", "lr": 1e-1, "eps": 1e-2},
    "prompt": {"scope": "prompt", "lr": 1e-2, "eps": 1e-3},
    "head": {"scope": "head", "lr": 1e-3, "eps": 1e-2},
}
BASELINES: dict[str, Callable[[Session], Any]] = {
    "zero-shot": lambda session: session.evaluate(),
    f"in-context, {SHOTS} demonstrations": lambda session: in_context(session, SHOTS),
    "linear probe": linear_probe,
}


def config(folder: Path, split: str = "test", **options: Any) -> TrainConfig:
    """The run of one mode in a folder of its own."""
    data = demo_data()
    files = {}
    for name, source, rows in (("train", data.train, TRAIN_ROWS), ("eval", getattr(data, split), TEST_ROWS)):
        files[name] = folder / f"{name}.jsonl"
        lines = source.read_text(encoding="utf-8").splitlines(keepends=True)
        files[name].write_text("".join(lines[:rows]), encoding="utf-8")
    return TrainConfig(model=str(demo_model()), output_dir=folder / "run", **files, **{**COMMON, **options})


def trained(name: str, steps: int) -> dict[str, Any]:
    """One mode: train, replay, export."""
    with tempfile.TemporaryDirectory() as place:
        settings = config(Path(place), steps=steps, **MODES[name])
        found = train(settings, Quiet())
        again = replay(settings.output_dir, True, Quiet())
        exported = export(settings.output_dir, Path(place) / "out", Quiet())
        session = Session(settings).build()
        return {
            "mode": name,
            "trained": sum(target.data.numel() for target in session.perturber.targets()),
            "lr": settings.lr,
            "eps": settings.eps,
            "steps": steps,
            "same_hash": again["weights_sha256"] == found["weights_sha256"],
            "export": exported["form"],
            "export_bytes": exported["bytes"],
            **{key: found[key] for key in ("seconds", "journal_bytes", "eval_examples")},
            **{f"{key}_{when}": found[f"{key}_{when}"] for key in KEYS for when in ("before", "after")},
        }


KEYS = ("accuracy", "low", "high", "loss")


def baselines() -> list[dict[str, Any]]:
    """The same model on the same rows without zeroth-order training."""
    with tempfile.TemporaryDirectory() as place:
        session, found = Session(config(Path(place))), []
        for name, measure in BASELINES.items():
            begun = time.perf_counter()
            seen = measure(session)
            found.append({"row": name, **seen.as_dict(), "seconds": time.perf_counter() - begun})
        return found


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = ["# Tuning modes", ""]
    lines += [f"{key}: {value}  " for key, value in result["machine"].items() if value is not None]
    lines += [
        "",
        f"SmolLM2-135M-Instruct, {TRAIN_ROWS} training sentences, {TEST_ROWS} held-out ones, MeZO with batches of "
        f"{COMMON['batch_size']}, lr falling linearly, one seed. The machine was shared while this ran: seconds are "
        "an upper bound.",
        "",
        "| mode | trained | lr | eps | steps | before | after (95 %) | loss before, after | s | journal | replay |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["modes"]:
        lines.append(
            f"| {row['mode']} | {row['trained']:,} | {row['lr']:g} | {row['eps']:g} | {row['steps']} "
            f"| {row['accuracy_before']:.1%} | {row['accuracy_after']:.1%} ({row['low_after']:.1%}-"
            f"{row['high_after']:.1%}) | {row['loss_before']:.3f}, {row['loss_after']:.3f} | {row['seconds']:.0f} "
            f"| {row['journal_bytes']} B | {'same hash' if row['same_hash'] else 'DIFFERENT'} |"
        )
    lines += [
        "",
        "Before: for prefix and prompt with the virtual tokens that the seed drew, which alone change the accuracy.",
        "",
        "| without zeroth-order training | accuracy (95 %) | loss | s |",
        "|---|---|---|---|",
    ]
    for row in result["baselines"]:
        lines.append(
            f"| {row['row']} | {row['accuracy']:.1%} ({row['low']:.1%}-{row['high']:.1%}) | {row['loss']:.3f} "
            f"| {row['seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, write results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--steps", type=int, default=150)
    options = parser.parse_args()
    result = {
        "machine": machine(),
        "modes": [trained(name, options.steps) for name in options.modes.split(",")],
        "baselines": baselines(),
    }
    write("modes", result, table(result))
    print(json.dumps(result) if options.json else table(result))


if __name__ == "__main__":
    main()
