"""Classification with label words: is a sentence from a film review for or against the film?

    python examples/classification.py --steps 240

By default on the demo's model and sentences, which it fetches as `zotune demo` does. The prompt is the sentence and
"It was"; the model answers with one of two words.
"""

from __future__ import annotations

import json
from typing import Any

from sentences import arguments, run_config

from zotune.train import train
from zotune.watch import Console

ROWS = 512, 400  # to train on, to test on
SETTINGS: dict[str, Any] = {
    "template": "{{ text }} It was",
    "label_words": ["terrible", "great"],  # for the labels 0 and 1
    "scope": "norms&last:6",  # the blocks below the scope run once per batch
    "lr": 4e-3,
    "lr_schedule": "linear",
    "eps": 3e-3,
    "batch_size": 16,
}


def main() -> None:
    """Train and say the accuracy before and after."""
    options = arguments(__doc__, 240).parse_args()
    config = run_config(options, ROWS, **SETTINGS)
    print(json.dumps(train(config, Console())))


if __name__ == "__main__":
    main()
