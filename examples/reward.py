"""A reward function trains what a model says: one word for the sentiment of a film review, and the right one.

    python examples/reward.py --steps 80

By default on the demo's model and sentences, which it fetches as `zotune demo` does.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from zotune.config import TrainConfig
from zotune.train import train
from zotune.watch import Console

WORDS = ("negative", "positive")
TRAIN_ROWS, TEST_ROWS = 512, 200
SETTINGS: dict[str, Any] = {
    "template": "Review: {{ text }}\nSentiment:",
    "max_new_tokens": 2,
    "scope": "norms&last:6",
    "lr": 4e-3,
    "lr_schedule": "linear",
    "eps": 1e-2,
    "batch_size": 16,
}


def names_the_sentiment(completions: list[str], label: list[int], **columns: Any) -> list[float]:
    """Half for a first word that names a sentiment, half for the right one."""
    scores = []
    for completion, right in zip(completions, label, strict=True):
        words = completion.lower().split()
        first = words[0].strip(".,!;:") if words else ""
        scores.append(0.5 * (first in WORDS) + 0.5 * (first == WORDS[right]))
    return scores


def head(source: Path, to: Path, rows: int) -> Path:
    """The first rows of a file."""
    lines = source.read_text(encoding="utf-8").splitlines()[:rows]
    to.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return to


def main() -> None:
    """Train and say the mean reward before and after."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--model", help="folder or hub id; default: the demo's")
    parser.add_argument("--data", type=Path, help="folder with train.jsonl and test.jsonl: text, label 0 or 1")
    parser.add_argument("--output-dir", type=Path)
    options = parser.parse_args()
    if options.model is None or options.data is None:
        from zotune.demo.assets import demo_data, demo_model

        model, rows = options.model or str(demo_model()), demo_data()
        source = {"train": rows.train, "test": rows.test}
    else:
        model, source = options.model, {name: options.data / f"{name}.jsonl" for name in ("train", "test")}
    folder = options.output_dir or Path(tempfile.mkdtemp(prefix="zotune-reward-"))
    folder.mkdir(parents=True, exist_ok=True)
    config = TrainConfig(
        model=model,
        train=head(source["train"], folder / "train.jsonl", TRAIN_ROWS),
        eval=head(source["test"], folder / "test.jsonl", TEST_ROWS),
        steps=options.steps,
        seed=options.seed,
        threads=options.threads,
        output_dir=folder / "run",
        **SETTINGS,
    )
    print(json.dumps(train(config, Console(), rewards=names_the_sentiment)))


if __name__ == "__main__":
    main()
