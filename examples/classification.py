"""Classification with label words: is a sentence from a film review for or against the film?

    python examples/classification.py --steps 240

By default on the demo's model and sentences, which it fetches as `zotune demo` does. The prompt is the sentence and
"It was"; the model answers with one of two words.
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

TRAIN_ROWS, TEST_ROWS = 512, 400
SETTINGS: dict[str, Any] = {
    "template": "{{ text }} It was",
    "label_words": ["terrible", "great"],  # for the labels 0 and 1
    "method": "lozo",
    "scope": "norms&last:6",  # the blocks below the scope run once per batch
    "lr": 4e-3,
    "lr_schedule": "linear",
    "eps": 3e-3,
    "batch_size": 16,
}


def head(source: Path, to: Path, rows: int) -> Path:
    """The first rows of a file."""
    lines = source.read_text(encoding="utf-8").splitlines()[:rows]
    to.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return to


def main() -> None:
    """Train and say the accuracy before and after."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=240)
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
    folder = options.output_dir or Path(tempfile.mkdtemp(prefix="zotune-classification-"))
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
    print(json.dumps(train(config, Console())))


if __name__ == "__main__":
    main()
