"""What `zotune plan` foresees, and what the run then takes: each in a process of its own, the plan first.

    python bench/plan.py [--rows mezo,mezo-lora] [--steps 20] [--threads 1] [--folder FOLDER] [--json]

SmolLM2-135M-Instruct and movie-review sentences, 100 of them held out. The machine is measured first (`zotune plan`
does it once and keeps it). Memory is the most that the run's process held; seconds are those of its steps.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from common import machine, row_arguments, sentences_config, write

TOP = {"scope": "last:6"}
RUNS: dict[str, dict[str, Any]] = {
    "mezo": {},
    "mezo-last6": TOP,
    "mezo-bfloat16": {"dtype": "bfloat16"},
    "mezo-batch4": {"batch_size": 4},
    "mezo-lora": {"scope": "lora"},
    "mezo-prefix": {"scope": "prefix"},
    "mezo-norms": {"scope": "norms"},
    "sparse_mezo": {"method": "sparse_mezo"},
    "lozo": {"method": "lozo"},
    "lozo-bank": {"method": "lozo", "scope": "bank"},
    "hizoo-last6": {"method": "hizoo", **TOP},
    "conmezo-last6": {"method": "conmezo", **TOP},
    "fzoo-last6": {"method": "fzoo", **TOP},
    "agzo-last6": {"method": "agzo", **TOP},
}
LIMIT = 0.10


def main() -> None:
    """Foresee, run, compare, write results."""
    options = row_arguments(__doc__, ",".join(RUNS), steps=20, threads=1)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="zotune-plan-"))
    found = {name: measured(name, folder / name, options.steps, options.threads) for name in options.rows.split(",")}
    text = table(found, options.steps, options.threads)
    write("plan", {"machine": machine(), "steps": options.steps, "threads": options.threads, "rows": found}, text)
    print(json.dumps(found) if options.json else text)


def measured(name: str, folder: Path, steps: int, threads: int) -> dict[str, Any]:
    """One row: the plan beside the run. What was measured before in `folder` is read."""
    kept = folder / "row.json"
    if kept.exists():
        row: dict[str, Any] = json.loads(kept.read_text())
        return row
    folder.mkdir(parents=True, exist_ok=True)
    shared = {"batch_size": 16, "steps": steps, "threads": threads, **RUNS[name]}
    config = sentences_config(folder, 256, 100, **shared)
    (folder / "run.yaml").write_text(config.to_yaml(), encoding="utf-8")
    plan = zotune("plan", "--config", str(folder / "run.yaml"))
    run = zotune("train", "--config", str(folder / "run.yaml"))
    foreseen = {
        "memory": plan["memory"]["peak"],
        "seconds": plan["train_seconds"],
        "journal": plan["disk"]["journal"],
        "forwards": plan["forwards_per_step"] * steps,
    }
    taken = {
        "memory": run["peak_memory_bytes"],
        "seconds": run["seconds"],
        "journal": run["journal_bytes"],
        "forwards": run["forwards"],
    }
    row = {"foreseen": foreseen, "taken": taken, "terms": plan["memory"]}
    kept.write_text(json.dumps(row))
    print(f"{name}: memory {off(row, 'memory'):+.1%}, seconds {off(row, 'seconds'):+.1%}", file=sys.stderr)
    return row


def zotune(*arguments: str) -> dict[str, Any]:
    """A command's result."""
    source = str(Path(__file__).parent.parent / "src")
    done = subprocess.run(
        [sys.executable, "-m", "zotune", *arguments, "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": source},
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"zotune {arguments[0]} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def off(row: dict[str, Any], key: str) -> float:
    """How far the plan was off, as a share of what was taken."""
    return float(row["foreseen"][key] / row["taken"][key] - 1)


def table(found: dict[str, dict[str, Any]], steps: int, threads: int) -> str:
    """The results as Markdown."""
    lines = ["# What `zotune plan` foresees", ""]
    lines += [f"{key}: {value}  " for key, value in machine().items() if value is not None]
    lines += [
        "", f"SmolLM2-135M-Instruct, {steps} steps, batches of 16 sentences unless said, {threads} thread(s); "
        "libraries (about 0.55 GB) included. Journal and forwards are foreseen exactly, or the row says so.", "",
        "| run | memory foreseen, MB | taken, MB | off | seconds foreseen | taken | off | journal, forwards |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, row in found.items():
        foreseen, taken = row["foreseen"], row["taken"]
        exact = all(foreseen[key] == taken[key] for key in ("journal", "forwards"))
        lines.append(
            f"| {name} | {foreseen['memory'] / 1e6:.0f} | {taken['memory'] / 1e6:.0f} | {off(row, 'memory'):+.1%} "
            f"| {foreseen['seconds']:.1f} | {taken['seconds']:.1f} | {off(row, 'seconds'):+.1%} "
            f"| {'exact' if exact else 'off'} |"
        )
    for key in ("memory", "seconds"):
        errors = [abs(off(row, key)) for row in found.values()]
        within = sum(error <= LIMIT for error in errors)
        lines.append("")
        lines.append(f"{key}: {within} of {len(errors)} within {LIMIT:.0%}, median {median(errors):.1%} off.")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
