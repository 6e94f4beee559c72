"""LoRA over a packed base: the linear layers take 4 bits a weight (QLoRA's nf4), the adapter is what is trained.

    pip install 'zotune[demo,peft,quant]'
    python examples/quantised_base.py --steps 60

By default on the demo's model and sentences, which it fetches as `zotune demo` does. The adapter is written as PEFT
reads it, for the same packed base.
"""

from __future__ import annotations

import json
from typing import Any

from sentences import arguments, run_config

from zotune.export import export
from zotune.train import train
from zotune.watch import Console

ROWS = 128, 100  # to train on, to test on
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
    config = run_config(options, ROWS, quantize=options.quantize, **SETTINGS)
    found = train(config, Console())
    written = export(config.output_dir, config.output_dir.with_name("adapter"), Console())
    print(json.dumps({**found, "adapter_bytes": written["bytes"]}))


if __name__ == "__main__":
    main()
