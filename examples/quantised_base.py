"""LoRA over a packed base: the linear layers take 4 bits a weight (QLoRA's nf4), the adapter is what is trained.

    pip install 'zotune[demo,peft,quant]'
    python examples/quantised_base.py --steps 60

By default on the demo's model and sentences, which it fetches as `zotune demo` does. The adapter is written as PEFT
reads it, for the same packed base.
"""

from __future__ import annotations

import json
from typing import Any

from sentences import arguments, folder_of, head, model_and_files

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
    parser = arguments(__doc__, 60)
    parser.add_argument("--quantize", default="nf4", help="nf4, or int8 and int4")
    options = parser.parse_args()
    model, train_file, test_file = model_and_files(options)
    folder = folder_of(options)
    config = TrainConfig(
        model=model,
        train=head(train_file, folder / "train.jsonl", TRAIN_ROWS),
        eval=head(test_file, folder / "test.jsonl", TEST_ROWS),
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
