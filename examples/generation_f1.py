"""Token F1 of generated answers as what is trained: the model is asked for the first three words of a sentence.

    python examples/generation_f1.py --steps 80

By default on the demo's model and sentences, which it fetches as `zotune demo` does. F1 has no gradient; it is measured
on what the model says, twice a step.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sentences import arguments, run_config

from zotune.train import train
from zotune.watch import Console

ROWS = 512, 200  # to train on, to test on
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
    options = arguments(__doc__, 80).parse_args()
    config = run_config(options, ROWS, questions, **SETTINGS)
    print(json.dumps(train(config, Console())))


if __name__ == "__main__":
    main()
