"""`zotune demo`: a real model learns a real task on the CPU, and the run is rebuilt from its journal.

SmolLM2-135M-Instruct reads movie-review sentences with MeZO's own prompt, `{text} It was` and the words terrible and
great. MeZO trains the norm gains of the top layers; everything below them runs once per batch. The settings were chosen
on the dev split (docs/log.md), the accuracy is of the test split.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from zotune.config import TrainConfig
from zotune.demo.assets import demo_data, demo_model
from zotune.machine import peak_memory_bytes
from zotune.revisit import replay
from zotune.train import train
from zotune.watch import Watch

TRAIN_ROWS, TEST_ROWS = 512, 600
SETTINGS: dict[str, Any] = {
    "template": "{{ text }} It was",
    "label_words": ["terrible", "great"],
    "method": "mezo",
    "scope": "norms&last:6",
    "lr": 4e-3,
    "lr_schedule": "linear",
    "eps": 3e-3,
    "batch_size": 16,
    "steps": 240,
}


def demo(
    watch: Watch,
    seed: int = 0,
    steps: int | None = None,
    output_dir: Path | None = None,
    threads: int | None = None,
) -> dict[str, Any]:
    """Fetch model and data, train, evaluate, replay. Returns the figures that `zotune demo --json` prints.

    Raises UserError when the model or the data cannot be had, and RunError if the replay ends on other weights.
    """
    watch.say(
        "Fetching the model (SmolLM2-135M-Instruct) and the data (movie-review sentences), or their cached copies."
    )
    model, data = demo_model(say=watch.say), demo_data(say=watch.say)
    folder = Path(tempfile.mkdtemp(prefix="zotune-demo-")) if output_dir is None else output_dir
    folder.mkdir(parents=True, exist_ok=True)
    config = TrainConfig(
        model=str(model),
        train=_head(data.train, folder / "train.jsonl", TRAIN_ROWS),
        eval=_head(data.test, folder / "test.jsonl", TEST_ROWS),
        seed=seed,
        threads=threads,
        output_dir=folder / "run",
        **{**SETTINGS, **({} if steps is None else {"steps": steps})},
    )
    watch.say(
        f"Training with forward passes only: {config.steps} steps of two evaluations on {config.batch_size} sentences. "
        f"The accuracy before and after is of {TEST_ROWS} sentences that the training never sees."
    )
    trained = train(config, watch)
    peak = peak_memory_bytes()
    watch.say("Rebuilding the trained weights from the base model and the journal alone: no data, no forward passes.")
    replayed = replay(config.output_dir, True, watch)
    result = {
        "accuracy_before": trained["accuracy_before"],
        "accuracy_after": trained["accuracy_after"],
        "accuracy_after_low": trained["low_after"],
        "accuracy_after_high": trained["high_after"],
        "eval_examples": trained["eval_examples"],
        "steps": trained["steps"],
        "train_seconds": trained["seconds"],
        "peak_memory_bytes": peak,
        "journal_bytes": trained["journal_bytes"],
        "weights_sha256": trained["weights_sha256"],
        "replay_sha256": replayed["weights_sha256"],
        "run": str(config.output_dir),
    }
    watch.say(_story(result))
    return result


def _head(source: Path, to: Path, rows: int) -> Path:
    lines = source.read_text(encoding="utf-8").splitlines()[:rows]
    if any("text" not in json.loads(line) for line in lines):
        raise ValueError(f"{source} has a row without text")
    to.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return to


def _story(result: dict[str, Any]) -> str:
    before, after = result["accuracy_before"], result["accuracy_after"]
    low, high = result["accuracy_after_low"], result["accuracy_after_high"]
    same = "the same hash" if result["weights_sha256"] == result["replay_sha256"] else "ANOTHER hash"
    return (
        f"Accuracy on {result['eval_examples']} held-out sentences: {before:.1%} before, {after:.1%} after "
        f"(95 % interval {low:.1%} to {high:.1%}), in {result['train_seconds']:.0f} s of training and at most "
        f"{result['peak_memory_bytes'] / 1e6:.0f} MB. The run is a journal of {result['journal_bytes']:,} bytes; "
        f"replayed, it gives {same}: {result['replay_sha256'][:16]}..."
    )
