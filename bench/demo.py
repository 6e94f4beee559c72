"""`zotune demo` for several seeds, each in a process of its own: accuracy, seconds, memory, journal.

python bench/demo.py [--seeds 0,1,2] [--json]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from statistics import mean
from typing import Any

from common import machine, write

from zotune.demo.run import SETTINGS, TRAIN_ROWS

TARGET_POINTS, TARGET_SECONDS = 18.0, 180.0


def run(seed: int) -> dict[str, Any]:
    """The last line of `zotune demo --json`."""
    command = [sys.executable, "-m", "zotune", "demo", "--seed", str(seed), "--json"]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    result: dict[str, Any] = json.loads(out.splitlines()[-1])
    result.pop("run")  # a path of this machine
    return {**result, "seed": seed, "points": 100 * (result["accuracy_after"] - result["accuracy_before"])}


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = ["# zotune demo", ""]
    lines += [f"{key}: {value}  " for key, value in result["machine"].items() if value is not None]
    settings = ", ".join(f"{key} {value}" for key, value in SETTINGS.items())
    lines += ["", f"Settings, chosen on the dev split: {settings}; {TRAIN_ROWS} training sentences.", ""]
    lines += [
        "| seed | before | after (95 %) | points | train s | peak MB | journal bytes | replay |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["runs"]:
        same = "same hash" if row["weights_sha256"] == row["replay_sha256"] else "DIFFERENT"
        lines.append(
            f"| {row['seed']} | {row['accuracy_before']:.1%} | {row['accuracy_after']:.1%} "
            f"({row['accuracy_after_low']:.1%}-{row['accuracy_after_high']:.1%}) | {row['points']:+.1f} "
            f"| {row['train_seconds']:.0f} | {row['peak_memory_bytes'] / 1e6:.0f} | {row['journal_bytes']} | {same} |"
        )
    lines += ["", f"Mean: {result['mean_points']:+.1f} points (target +{TARGET_POINTS:.0f}), at most "]
    lines[-1] += f"{result['max_seconds']:.0f} s of training (target {TARGET_SECONDS:.0f}), "
    lines[-1] += f"{result['runs'][0]['eval_examples']} held-out sentences."
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, write results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seeds", default="0,1,2")
    options = parser.parse_args()
    runs = [run(int(seed)) for seed in options.seeds.split(",")]
    result = {
        "machine": machine(),
        "runs": runs,
        "mean_points": mean(row["points"] for row in runs),
        "max_seconds": max(row["train_seconds"] for row in runs),
    }
    write("demo", result, table(result))
    print(json.dumps(result) if options.json else table(result))


if __name__ == "__main__":
    main()
