"""LoRA over a packed base: the linear layers take 4 bits a weight (QLoRA's nf4), the adapter is what is trained.

    pip install 'zotune[demo,peft,quant]'
    python examples/quantised_base.py --steps 60

By default on the demo's model and sentences, which it fetches as `zotune demo` does. The adapter is written as PEFT
reads it, for the same packed base.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from zotune.config import TrainConfig
from zotune.export import export
from zotune.train import train
from zotune.watch import Console

TRAIN_ROWS, TEST_ROWS = 128, 100
SETTINGS: dict[str, Any] = {
    "template": "{{ text }} It was",
    "label_words": ["terrible", "great"],
    "scope": "lora&last:6",
    "lr": 1.5e-2,
    "lr_schedule": "linear",
    "eps": 1e-2,
    "batch_size": 16,
}


def main() -> None:
    """Train, export the adapter, and say the accuracy before and after."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quantize", default="nf4", help="nf4, or int8 and int4")
    parser.add_argument("--steps", type=int, default=60)
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
    folder = options.output_dir or Path(tempfile.mkdtemp(prefix="zotune-packed-"))
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("train", TRAIN_ROWS), ("test", TEST_ROWS)):
        lines = source[name].read_text(encoding="utf-8").splitlines()[:count]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = TrainConfig(
        model=model,
        train=folder / "train.jsonl",
        eval=folder / "test.jsonl",
        quantize=options.quantize,
        steps=options.steps,
        seed=options.seed,
        threads=options.threads,
        output_dir=folder / "run",
        **SETTINGS,
    )
    found = train(config, Console())
    written = export(config.output_dir, folder / "adapter", Console())
    print(json.dumps({**found, "adapter_bytes": written["bytes"]}))


if __name__ == "__main__":
    main()
