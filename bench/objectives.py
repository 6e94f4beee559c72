"""Two objectives without a gradient on the demo's model and sentences: token F1 of answers, and a reward function.

python bench/objectives.py [--steps 80] [--seeds 0] [--threads 1] [--json]

Runs examples/generation_f1.py and examples/reward.py, each in a process of its own, and counts the steps without a
slope in their journals.
"""

from __future__ import annotations

import argparse
import json
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import machine, write

from zotune.demo.assets import demo_data
from zotune.revisit import log_rows

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
ARMS = {"generation_f1": "f1", "reward": "reward"}


def run(name: str, steps: int, seed: int, threads: int) -> dict[str, Any]:
    """One run of an example, as its last line says, and how many of its steps had equal losses on both sides."""
    key = ARMS[name]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(EXAMPLES / f"{name}.py"), "--steps", str(steps), "--seed", str(seed)]
        command += ["--threads", str(threads), "--output-dir", folder]
        out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        found = json.loads(out.splitlines()[-1])
        flat = sum(len(set(row["losses"])) == 1 for row in log_rows(Path(folder) / "run"))
    return {
        "name": name,
        "measure": key,
        "seed": seed,
        "steps": found["steps"],
        "flat_steps": flat,
        "before": found[f"{key}_before"],
        "before_interval": [found["low_before"], found["high_before"]],
        "after": found[f"{key}_after"],
        "after_interval": [found["low_after"], found["high_after"]],
        "eval_examples": found["eval_examples"],
        "train_seconds": found["seconds"],
        "journal_bytes": found["journal_bytes"],
    }


def constant() -> float:
    """The reward of a model that says the same word to every held-out review: the better of the two words."""
    example = runpy.run_path(str(EXAMPLES / "reward.py"))
    lines = demo_data().test.read_text(encoding="utf-8").splitlines()[: example["TEST_ROWS"]]
    labels = [json.loads(line)["label"] for line in lines]
    scores = [example["names_the_sentiment"]([f" {word}"] * len(labels), labels) for word in example["WORDS"]]
    return max(sum(each) / len(each) for each in scores)


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = ["# Objectives without a gradient", ""]
    lines += [f"{key}: {value}  " for key, value in result["machine"].items() if value is not None]
    lines += ["", "SmolLM2-135M-Instruct, movie sentences, MeZO; held-out rows that no setting was chosen on.", ""]
    for name, settings in result["settings"].items():
        lines.append(f"- {name}: " + ", ".join(f"{key} {value!r}" for key, value in settings.items()))
    lines += [
        "",
        "| run | seed | steps | no slope | before (95 %) | after (95 %) | held-out rows | train s | journal |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["runs"]:
        before, after = (
            f"{row[when]:.3f} ({row[f'{when}_interval'][0]:.3f} to {row[f'{when}_interval'][1]:.3f})"
            for when in ("before", "after")
        )
        lines.append(
            f"| {row['name']} ({row['measure']}) | {row['seed']} | {row['steps']} | {row['flat_steps']} | {before} "
            f"| {after} | {row['eval_examples']} | {row['train_seconds']:.0f} | {row['journal_bytes']} B |"
        )
    lines += [
        "",
        "A model that says one and the same sentiment to every review has a reward of "
        f"{result['constant_reward']:.3f}: below that, a gain may be in the form of the answers alone.",
    ]
    lines += ["", "Seconds are of a machine that did other work meanwhile." if result["busy"] else ""]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    """Measure, print, write results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--busy", action="store_true", help="say in the table that the machine did other work")
    options = parser.parse_args()
    runs = [run(name, options.steps, int(s), options.threads) for name in ARMS for s in options.seeds.split(",")]
    settings = {name: runpy.run_path(str(EXAMPLES / f"{name}.py"))["SETTINGS"] for name in ARMS}
    result = {
        "machine": {**machine(), "threads": options.threads},
        "busy": options.busy,
        "settings": settings,
        "runs": runs,
        "constant_reward": constant(),
    }
    write("objectives", result, table(result))
    print(json.dumps(result) if options.json else table(result))


if __name__ == "__main__":
    main()
