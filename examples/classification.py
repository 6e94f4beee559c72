"""Classification with label words: is a sentence from a film review for or against the film?

    python examples/classification.py --steps 240

By default on the demo's model and sentences, which it fetches as `zotune demo` does. The prompt is the sentence and
"It was"; the model answers with one of two words.
"""

from __future__ import annotations

import json
from typing import Any

from sentences import arguments, folder_of, head, model_and_files

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


def main() -> None:
    """Train and say the accuracy before and after."""
    options = arguments(__doc__, 240).parse_args()
    model, train_file, test_file = model_and_files(options)
    folder = folder_of(options)
    config = TrainConfig(
        model=model,
        train=head(train_file, folder / "train.jsonl", TRAIN_ROWS),
        eval=head(test_file, folder / "test.jsonl", TEST_ROWS),
        steps=options.steps,
        seed=options.seed,
        threads=options.threads,
        output_dir=folder / "run",
        **SETTINGS,
    )
    print(json.dumps(train(config, Console())))


if __name__ == "__main__":
    main()
