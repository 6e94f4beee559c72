"""A reward function trains what a model says: one word for the sentiment of a film review, and the right one.

    python examples/reward.py --steps 80

By default on the demo's model and sentences, which it fetches as `zotune demo` does.
"""

from __future__ import annotations

import json
from typing import Any

from sentences import arguments, run_config

from zotune.train import train
from zotune.watch import Console

WORDS = ("negative", "positive")
ROWS = 512, 200  # to train on, to test on
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


def main() -> None:
    """Train and say the mean reward before and after."""
    options = arguments(__doc__, 80).parse_args()
    config = run_config(options, ROWS, **SETTINGS)
    print(json.dumps(train(config, Console(), rewards=names_the_sentiment)))


if __name__ == "__main__":
    main()
