"""The first hour of a new user: a fresh clone and environment, the README from the top, and the time of each step.

    python bench/first_hour.py [--json] [--keep DIR]

Every step is a command as the README and the quickstart have it; the first that fails ends the script. The model is the
demo's, the rows are its sentences as a file of one's own. Packages come from the index, or pip's cache: what was
downloaded on this machine before is faster than on a new one.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import machine, write

TRAIN = "--template '{{ text }} It was' --label-words terrible,great"
# What a user types, and what it is for. $MODEL and the files are what `make demo` fetched.
STEPS: tuple[tuple[str, str], ...] = (
    ("make demo", "install, fetch the model, train, replay"),
    ("zotune --help", "what can it do"),
    ("zotune doctor", "is this machine ready"),
    ("zotune methods", "which methods are there"),
    ("zotune data train.jsonl --model $MODEL " + TRAIN, "how are my rows read"),
    (f"zotune eval --model $MODEL --eval test.jsonl {TRAIN}", "how good is the model before"),
    (
        f"zotune init run.yaml --model $MODEL --train train.jsonl --eval test.jsonl {TRAIN} --scope 'norms&last:6' "
        "--steps 120 --lr-schedule linear --output-dir runs/first",
        "a config",
    ),
    ("zotune tune --config run.yaml --write run.yaml", "lr and eps"),
    ("zotune plan --config run.yaml", "memory and time"),
    ("zotune train --config run.yaml", "train"),
    ("zotune log runs/first", "the steps"),
    ("zotune verify runs/first", "replay, compare every hash"),
    ("zotune plan runs/first", "predicted against measured"),
    ("zotune report runs/first", "one HTML page"),
    ("zotune export runs/first --to trained", "for from_pretrained"),
    ("zotune undo runs/first 20", "take the last steps back"),
    ("zotune resume runs/first", "and make them again"),
)


def run(command: str, folder: Path, environment: dict[str, str]) -> dict[str, Any]:
    """One step; its last lines are kept."""
    print(f"$ {command}", file=sys.stderr, flush=True)
    begun = time.perf_counter()
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    seconds = time.perf_counter() - begun
    if done.returncode:
        raise SystemExit(f"{command} ended with {done.returncode}:\n{done.stdout[-3000:]}")
    said = [line for line in done.stdout.splitlines() if line.strip()]
    # Folders of this machine are nobody else's business.
    end = re.sub(r"/\S*/", ".../", said[-1]) if said else ""
    return {"command": command, "seconds": seconds, "lines": len(said), "end": end}


def rows(folder: Path, clone: Path) -> None:
    """The demo's sentences as files of one's own, 400 and 300 of them."""
    code = (
        "import json; from zotune.demo.assets import demo_data, demo_model; d = demo_data(); "
        "print(json.dumps([str(demo_model()), str(d.train), str(d.test)]))"
    )
    out = subprocess.run([clone / ".venv/bin/python", "-c", code], check=True, stdout=subprocess.PIPE, text=True).stdout
    model, train, test = json.loads(out.splitlines()[-1])
    for source, name, count in ((train, "train.jsonl", 400), (test, "test.jsonl", 300)):
        lines = Path(source).read_text(encoding="utf-8").splitlines()[:count]
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "MODEL").write_text(model)


def main() -> None:
    """Do it, print, write results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--keep", type=Path, help="leave the clone and the runs in this folder")
    options = parser.parse_args()
    place = options.keep or Path(tempfile.mkdtemp(prefix="zotune-first-hour-"))
    place.mkdir(parents=True, exist_ok=True)
    clone, home = place / "zotune", place / "work"
    subprocess.run(["git", "clone", "-q", str(Path(__file__).parents[1]), str(clone)], check=True)
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment["PATH"] = f"{clone / '.venv/bin'}:{environment['PATH']}"
    found = []
    for command, purpose in STEPS:
        at = clone if command.startswith("make") else home
        found.append({"for": purpose, **run(command, at, environment)})
        if command == "make demo":
            rows(home, clone)
            environment["MODEL"] = (home / "MODEL").read_text()
    total = sum(row["seconds"] for row in found)
    lines = ["# A first hour", ""]
    lines += [f"{key}: {value}  " for key, value in machine().items() if value is not None]
    lines += [
        "",
        "A fresh clone and environment; `$MODEL` is the demo's model. The last line is what the command ended with.",
        "",
    ]
    lines += ["| for | command | seconds | last line |", "|---|---|---|---|"]
    for row in found:
        end = row["end"].replace("|", "/")[:150]
        lines.append(f"| {row['for']} | `{row['command'].replace('|', '/')}` | {row['seconds']:.1f} | {end} |")
    lines += ["", f"In all {total / 60:.1f} minutes."]
    text = "\n".join(lines) + "\n"
    write("first-hour", {"machine": machine(), "steps": found, "seconds": total}, text)
    print(json.dumps({"seconds": total, "steps": found}) if options.json else text)
    if options.keep is None:
        shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    main()
