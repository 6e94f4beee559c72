"""Token F1 of generated answers as what is trained: the model is asked for the first three words of a sentence.

    python examples/generation_f1.py --steps 80

By default on the demo's model and sentences, which it fetches as `zotune demo` does. F1 has no gradient; it is measured
on what the model says, twice a step.
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

TRAIN_ROWS, TEST_ROWS = 512, 200
SETTINGS: dict[str, Any] = {
    "objective": "f1",
    "max_new_tokens": 5,
    "stop": ['"', "\n"],
    "scope": "norms&last:6",
    "lr": 4e-3,
    "lr_schedule": "linear",
    "eps": 1e-2,
    "batch_size": 16,
}


def questions(source: Path, to: Path, rows: int) -> Path:
    """The first sentences of a file that have 4 to 16 words, as prompt and completion."""
    lines = []
    for line in source.read_text(encoding="utf-8").splitlines():
        text = json.loads(line)["text"]
        words = text.split()
        if 4 <= len(words) <= 16:
            asked = {"prompt": f'"{text}"\nThe first three words are "', "completion": " ".join(words[:3])}
            lines.append(json.dumps(asked) + "\n")
    to.write_text("".join(lines[:rows]), encoding="utf-8")
    return to


def main() -> None:
    """Train and say the mean token F1 before and after."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--model", help="folder or hub id; default: the demo's")
    parser.add_argument("--data", type=Path, help="folder with train.jsonl and test.jsonl: a column text")
    parser.add_argument("--output-dir", type=Path)
    options = parser.parse_args()
    if options.model is None or options.data is None:
        from zotune.demo.assets import demo_data, demo_model

        model, rows = options.model or str(demo_model()), demo_data()
        source = {"train": rows.train, "test": rows.test}
    else:
        model, source = options.model, {name: options.data / f"{name}.jsonl" for name in ("train", "test")}
    folder = options.output_dir or Path(tempfile.mkdtemp(prefix="zotune-f1-"))
    folder.mkdir(parents=True, exist_ok=True)
    config = TrainConfig(
        model=model,
        train=questions(source["train"], folder / "train.jsonl", TRAIN_ROWS),
        eval=questions(source["test"], folder / "test.jsonl", TEST_ROWS),
        steps=options.steps,
        seed=options.seed,
        threads=options.threads,
        output_dir=folder / "run",
        **SETTINGS,
    )
    print(json.dumps(train(config, Console())))


if __name__ == "__main__":
    main()
