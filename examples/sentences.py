"""What these examples share: their arguments, and the demo's model and film-review sentences, or one's own."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zotune.config import TrainConfig


def arguments(doc: str | None, steps: int) -> argparse.ArgumentParser:
    """The options of every example; `doc` is what its --help says."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--model", help="folder or hub id; default: the demo's")
    parser.add_argument("--data", type=Path, help="folder with train.jsonl and test.jsonl: text, label 0 or 1")
    parser.add_argument("--output-dir", type=Path)
    return parser


def model_and_files(options: argparse.Namespace) -> tuple[str, Path, Path]:
    """The model, and the files with sentences to train on and to test on; the demo's are fetched."""
    if options.model is not None and options.data is not None:
        return options.model, options.data / "train.jsonl", options.data / "test.jsonl"
    from zotune.demo.assets import demo_data, demo_model

    data = demo_data()
    return options.model or str(demo_model()), data.train, data.test


def folder_of(options: argparse.Namespace) -> Path:
    """Where the example writes: --output-dir, or a new folder."""
    folder = options.output_dir or Path(tempfile.mkdtemp(prefix="zotune-example-"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def head(source: Path, to: Path, rows: int) -> Path:
    """The first rows of a file, as a file of their own."""
    lines = source.read_text(encoding="utf-8").splitlines()[:rows]
    to.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return to


def run_config(
    options: argparse.Namespace, rows: tuple[int, int], write: Callable[[Path, Path, int], Path] = head, **settings: Any
) -> TrainConfig:
    """What `zotune.train` takes: the options' model and files, so many `rows` to train on and to test on, as `write`
    makes them of the sentences, and `settings`.
    """
    model, train_file, test_file = model_and_files(options)
    folder = folder_of(options)
    return TrainConfig(
        model=model,
        train=write(train_file, folder / "train.jsonl", rows[0]),
        eval=write(test_file, folder / "test.jsonl", rows[1]),
        steps=options.steps,
        seed=options.seed,
        threads=options.threads,
        output_dir=folder / "run",
        **settings,
    )
