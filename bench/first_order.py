"""Memory of zeroth-order and first-order training on the same model, rows and batches: each in a process of its own.

    python bench/first_order.py [--rows zero-shot,mezo,adamw] [--steps 12] [--threads 2] [--folder FOLDER] [--json]

SmolLM2-135M-Instruct and movie-review sentences, as in `zotune demo`; all weights or LoRA, float32, batches of 16. A
few steps show what a step holds; how well each learns is in `bench/modes.py` and `bench/methods.py`, not here.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from common import machine, row_arguments, sentences_config, write

from zotune.comparison.compare import compare
from zotune.comparison.rows import make_rows
from zotune.watch import Console

ROWS = "zero-shot,mezo,sparse_mezo,lozo,mezo-lora,sgd,adamw,adamw-lora"
TRAIN_ROWS, TEST_ROWS = 256, 32


def main() -> None:
    """Measure, print, write results."""
    options = row_arguments(__doc__, ROWS, steps=12, threads=2)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="zotune-first-order-"))
    folder.mkdir(parents=True, exist_ok=True)
    shared = sentences_config(
        folder, TRAIN_ROWS, TEST_ROWS, batch_size=16, steps=options.steps, threads=options.threads
    )
    found = compare(shared, make_rows(shared, options.rows.split(","), []), Console())["rows"]
    failed = [row for row in found if "error" in row]
    if failed:
        raise SystemExit(f"{failed[0]['row']}: {failed[0]['error']}")
    base = next(row["peak_memory_bytes"] for row in found if row["row"] == "zero-shot")
    lines = ["# Memory beside first-order training", ""]
    lines += [f"{key}: {value}  " for key, value in machine().items() if value is not None]
    lines += [
        "", "SmolLM2-135M-Instruct (538 MB in float32), batches of 16 sentences, "
        f"{options.steps} steps. Memory: the most that the row's own process held, libraries (about 0.55 GB) and the "
        "loading of the model included. A step is two forward passes, or (sgd, adamw) one and a backward pass.", "",
        "| | scope | peak MB | times inference | s per step |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for row in found:
        peak = row["peak_memory_bytes"]
        pace = "-" if not row.get("steps") else f"{row['seconds'] / row['steps']:.2f}"
        lines.append(f"| {row['row']} | {row.get('scope') or '-'} | {peak / 1e6:.0f} | {peak / base:.2f} | {pace} |")
    text = "\n".join(lines) + "\n"
    write("first-order", {"machine": machine(), "steps": options.steps, "rows": found}, text)
    print(json.dumps(found) if options.json else text)


if __name__ == "__main__":
    main()
