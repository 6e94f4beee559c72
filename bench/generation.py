"""What a step costs whose objective is what the model says: both sides in one batch, prompts read once.

    python bench/generation.py [--json] [--threads 1] [--turns 2]

The demo's model says so many tokens greedily after each of 16 movie sentences in a prompt; token F1 of one word. Three
sessions on the same rows step in turn: with everything (lanes, and the prompts' activations below the scope kept),
without the kept ones, and one side after the other without them. A row is a scope and a number of tokens; its ratios
are medians of the plain session's seconds over the other's within a turn, in the first epoch, where the prompts are
read, and later.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import machine, seconds, sentences_config, write

from zotune.session import Session

ROWS = (("norms&last:6", 5), ("norms&last:6", 20), ("norms", 5))
ARMS: dict[str, dict[str, Any]] = {
    "one batch, prompts kept": {"lanes": "auto"},
    "one batch": {"lanes": "auto", "reuse_mb": 0},
    "plain": {"lanes": "off", "reuse_mb": 0},
}
BATCHES, BATCH = 3, 16


def sessions(folder: Path, scope: str, tokens: int) -> dict[str, Session]:
    """One for each arm, on the same rows, after a step that pays for what the first one does."""
    config = sentences_config(folder, BATCHES * BATCH, BATCH, steps=100, batch_size=BATCH, scope=scope, lr=1e-9)
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    said = [
        {"prompt": f"Review: {row['text']}\nSentiment:", "completion": (" terrible", " great")[row["label"]]}
        for row in rows
    ]
    (folder / "said.jsonl").write_text("".join(json.dumps(row) + "\n" for row in said), encoding="utf-8")
    config = replace(
        config, train=folder / "said.jsonl", eval=None, template=None, label_words=None, objective="f1",
        max_new_tokens=tokens, stop=["@@@"],
    )  # fmt: skip
    return {name: Session(replace(config, **options)).begin() for name, options in ARMS.items()}


def row(folder: Path, scope: str, tokens: int, turns: int) -> dict[str, Any]:
    """The medians of one scope and number of tokens."""
    arms = sessions(folder, scope, tokens)
    took: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(BATCHES * (1 + turns)):
        for name, session in arms.items():
            took[name].append(seconds(session.step))
    found: dict[str, Any] = {"scope": scope, "tokens": tokens, "blocks_skipped": 0, "kept_megabytes": 0.0}
    for name, session in arms.items():
        pairs = list(zip(took["plain"], took[name], strict=True))
        first, later = pairs[:BATCHES], pairs[BATCHES:]
        found[name] = {
            "seconds": median(own for _, own in later),
            "first_epoch": median(plain / own for plain, own in first),
            "later": median(plain / own for plain, own in later),
        }
        if session.reuse.depth:
            found["blocks_skipped"], found["kept_megabytes"] = session.reuse.depth, session.reuse.kept_bytes / 1e6
    return found


def page(result: dict[str, Any]) -> str:
    """The table in Markdown."""
    lines = ["# Steps on what a model says", "", *(f"{key}: {value}  " for key, value in result["machine"].items()), ""]
    lines += [f"SmolLM2-135M-Instruct, batch {BATCH}, MeZO. Times faster than one side after the other, medians.", ""]
    lines += ["| scope | tokens | one batch | and prompts kept: first epoch | later epochs | seconds | kept |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for own in result["rows"]:
        kept, batch = own["one batch, prompts kept"], own["one batch"]
        lines += [
            f"| {own['scope']} | {own['tokens']} | {batch['later']:.2f} | {kept['first_epoch']:.2f} | "
            f"{kept['later']:.2f} | {kept['seconds']:.2f} (plain {own['plain']['seconds']:.2f}) | "
            f"{own['blocks_skipped']} blocks, {own['kept_megabytes']:.0f} MB |"
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, write results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=2, help="epochs after the first")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.getLogger("zotune").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        rows = [row(Path(folder), scope, tokens, options.turns) for scope, tokens in ROWS]
    result = {"machine": machine(), "rows": rows}
    write("generation", result, page(result))
    print(json.dumps(result) if options.json else page(result))


if __name__ == "__main__":
    main()
