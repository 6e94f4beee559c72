"""Tasks of the lm-evaluation-harness: what `zotune eval` measures beside what lm-eval itself measures.

python bench/harness.py [--rows 200] [--threads 1] [--json]

The same model (SmolLM2-135M-Instruct), the same YAML files, the same documents (the demo's held-out sentences, in their
order), each program in its own way: `zotune eval --tasks FILE.yaml` as a command, lm-eval through `simple_evaluate`,
with the model loaded by lm-eval. Candidates of equal and of unequal numbers of tokens. Needs lm-eval, the extra `eval`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import logging
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import machine, write

CHOICES = {
    "one token each": ["terrible", "great"],
    "three tokens each": ["a terrible mess", "a great film"],
    "unequal": ["not good at all", "great"],
    "unequal, the other way": ["bad", "one of the best films of the year"],
    "four": ["very bad", "bad", "good", "one of the best"],
}
FILE = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{text}}}} It was"
doc_to_target: {target}
doc_to_choice: {choices}
metric_list:
  - metric: acc
  - metric: acc_norm
"""


def files(folder: Path, count: int) -> dict[str, Path]:
    """A task file for each set of candidates, on the same rows."""
    from zotune.demo.assets import demo_data

    lines = demo_data().test.read_text(encoding="utf-8").splitlines(keepends=True)[:count]
    rows = folder / "test.jsonl"
    rows.write_text("".join(lines), encoding="utf-8")
    found = {}
    for number, (name, choices) in enumerate(CHOICES.items()):
        target = "label" if len(choices) == 2 else '"{% if label %}3{% else %}1{% endif %}"'
        found[name] = folder / f"opinion{number}.yaml"
        text = FILE.format(name=f"opinion{number}", rows=rows, target=target, choices=json.dumps(choices))
        found[name].write_text(text, encoding="utf-8")
    return found


def by_zotune(model: Path, tasks: dict[str, Path], threads: int) -> dict[str, dict[str, Any]]:
    """What the command gives for each file."""
    named = ",".join(map(str, tasks.values()))
    command = [sys.executable, "-m", "zotune", "eval", "--model", str(model), "--tasks", named]
    command += ["--threads", str(threads), "--device", "cpu", "--json"]
    ended = subprocess.run(command, check=True, capture_output=True, text=True)
    rows = json.loads(ended.stdout)["tasks"]
    return {
        name: {"acc": row["accuracy"], "acc_norm": row["acc_norm"], "documents": row["examples"]}
        for name, row in zip(tasks, rows, strict=True)
    }


def by_lm_eval(model: Path, tasks: dict[str, Path], threads: int) -> dict[str, dict[str, Any]]:
    """What lm-eval gives for them."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    logging.disable(logging.WARNING)
    torch.set_num_threads(threads)
    manager = TaskManager(include_path=str(next(iter(tasks.values())).parent))
    loaded = {"pretrained": str(model), "dtype": "float32"}
    named = [path.stem for path in tasks.values()]
    found = simple_evaluate("hf", loaded, tasks=named, task_manager=manager, device="cpu", batch_size=16)
    assert found is not None
    return {
        name: {
            **{key: found["results"][path.stem][f"{key},none"] for key in ("acc", "acc_norm")},
            "documents": found["n-samples"][path.stem]["effective"],
        }
        for name, path in tasks.items()
    }


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    text = ["# The lm-evaluation-harness", ""]
    text += [f"{key}: {value}  " for key, value in result["machine"].items() if value is not None]
    text += [
        "",
        "SmolLM2-135M-Instruct, the demo's held-out sentences and `{{text}} It was`, no demonstrations. acc: the "
        "highest sum of log-probabilities; acc_norm: the highest sum per character of the candidate.",
        "",
        "| candidates | documents | acc, zotune | acc, lm-eval | acc_norm, zotune | acc_norm, lm-eval |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in result["tasks"].items():
        ours, theirs = row["zotune"], row["lm_eval"]
        cells = [f"{each[key]:.4f}" for key in ("acc", "acc_norm") for each in (ours, theirs)]
        documents = ours["documents"] if ours["documents"] == theirs["documents"] else "DIFFERENT"
        text.append(f"| {name}: {', '.join(CHOICES[name])} | {documents} | {' | '.join(cells)} |")
    return "\n".join(text) + "\n"


def main() -> None:
    """Measure, print, write results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if importlib.util.find_spec("lm_eval") is None:
        print("lm-eval is not installed: pip install 'zotune[eval]'. Nothing was measured.", file=sys.stderr)
        return
    from zotune.demo.assets import demo_model

    model = demo_model()
    with tempfile.TemporaryDirectory() as place:
        tasks = files(Path(place), options.rows)
        ours = by_zotune(model, tasks, options.threads)
        theirs = by_lm_eval(model, tasks, options.threads)
    versions = {name: importlib.metadata.version(name) for name in ("lm_eval", "datasets")}
    result = {"machine": {**machine(), "threads": options.threads, **versions}, "rows": options.rows}
    result["tasks"] = {name: {"zotune": ours[name], "lm_eval": theirs[name]} for name in tasks}
    write("harness", result, table(result))
    print(json.dumps(result) if options.json else table(result))


if __name__ == "__main__":
    main()
