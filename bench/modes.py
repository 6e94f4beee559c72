"""Tuning modes on a real model and a real task: LoRA, prefix and prompt tuning, the output head; beside them what needs
no training, and AdamW on LoRA. One call of what `zotune compare` calls, then a replay and an export of every run.

python bench/modes.py [--steps 100] [--threads 1] [--rows mezo-lora,mezo-prefix] [--folder FOLDER] [--busy] [--json]

SmolLM2-135M-Instruct and movie-review sentences, as in `zotune demo`; one seed each. lr and eps of MeZO are those of
`zotune tune` with four directions on the training rows, eps rounded to where its slopes are trusted; no figure of the
held-out rows chose anything. With --folder a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from common import machine, sentences_config, write

from zotune.comparison.compare import compare
from zotune.comparison.rows import make_rows
from zotune.comparison.table import NOTE, lines
from zotune.export import export
from zotune.revisit import replay
from zotune.watch import Console, Quiet

TRAIN_ROWS, TEST_ROWS, GRADIENT_STEPS = 512, 200, 48
COMMON: dict[str, Any] = {
    "method": "mezo",
    "batch_size": 8,
    "lr_schedule": "linear",
    "seed": 0,
}
ROWS = (
    "zero-shot", "in-context", "linear-probe", "mezo-head", "mezo-lora", "mezo-prefix", "mezo-prompt", "adamw-lora",
)  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    "in-context": {"demonstrations": 4},
    "mezo-lora": {"lr": "4e-3", "eps": "1e-3"},
    "mezo-prefix": {"lr": "1e-1", "eps": "1e-2"},
    "mezo-prompt": {"lr": "1e-2", "eps": "1e-3"},
    "mezo-head": {"lr": "3e-4", "eps": "3e-4"},
    "adamw-lora": {"steps": GRADIENT_STEPS},
}


def measured(folder: Path, names: list[str], steps: int, threads: int) -> list[dict[str, Any]]:
    """The rows, those of MeZO with what a replay and an export of their run give."""
    settings = [f"{row}.{key}={value}" for row in names for key, value in SETTINGS.get(row, {}).items()]
    shared = sentences_config(folder, TRAIN_ROWS, TEST_ROWS, steps=steps, threads=threads, **COMMON)
    found = compare(shared, make_rows(shared, names, settings), Console())["rows"]
    for row in found:
        run = shared.output_dir / "runs" / row["row"]
        if "error" in row or not run.exists():
            continue
        again = replay(run, True, Quiet())
        with tempfile.TemporaryDirectory() as place:
            exported = export(run, Path(place) / "out", Quiet())
        row |= {"same_hash": again["verified"], "journal_bytes": again["journal_bytes"]}
        row |= {"export": exported["form"], "export_bytes": exported["bytes"]}
    return found


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    text = ["# Tuning modes", ""]
    text += [f"{key}: {value}  " for key, value in result["machine"].items() if value is not None]
    text += [
        "",
        f"SmolLM2-135M-Instruct, {TRAIN_ROWS} training sentences, {TEST_ROWS} held-out ones, batches of "
        f"{COMMON['batch_size']}, lr falling linearly to 0, one seed. lr and eps of MeZO from `zotune tune` on the "
        f"training rows, those of AdamW the defaults of `zotune compare`; {SETTINGS['in-context']['demonstrations']} "
        "demonstrations.",
        *(["Other programs ran beside this one: times are an upper bound, and not to be compared."] * result["busy"]),
        "",
        "```",
        *lines(result["rows"]),
        "```",
        "",
        NOTE,
        "",
        "| MeZO | trained | lr | eps | accuracy before | after | loss before, after | journal | replay | export |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        if "same_hash" in row:
            text.append(
                f"| {row['scope']} | {row['trained']:,} | {row['lr']:g} | {row['eps']:g} | {row['accuracy_before']:.1%}"
                f" | {row['accuracy']:.1%} | {row['loss_before']:.3f}, {row['loss']:.3f} | {row['journal_bytes']} B "
                f"| {'same hash' if row['same_hash'] else 'DIFFERENT'} | {row['export']}, {row['export_bytes']:,} B |"
            )
    text += ["", "Before: for prefix and prompt with the virtual tokens that the seed drew, which alone change it."]
    return "\n".join(text) + "\n"


def main() -> None:
    """Measure, print, write results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--busy", action="store_true", help="say in the table that the machine did other work")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = options.folder or Path(place)
        folder.mkdir(parents=True, exist_ok=True)
        rows = measured(folder, options.rows.split(","), options.steps, options.threads)
    result = {"machine": {**machine(), "threads": options.threads}, "busy": options.busy, "steps": options.steps}
    result |= {"settings": {**COMMON, "rows": SETTINGS}, "rows": rows}
    write("modes", result, table(result))
    print(json.dumps(result) if options.json else table(result))


if __name__ == "__main__":
    main()
