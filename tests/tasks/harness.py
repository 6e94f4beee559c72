"""Files of the lm-evaluation-harness, written for these tests in its own fields."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LISTED = r"""
task: opinion
dataset_path: someone/opinions
dataset_name: plain
output_type: multiple_choice
training_split: train
validation_split: validation
description: "Judge.\n"
doc_to_text: "{{text}}\nOpinion:\n"
doc_to_target: label
doc_to_choice: ["bad", "good"]
metric_list:
  - metric: acc
    aggregation: !function utils.mean
"""
GENERATED = r"""
task: who
dataset_path: questions
output_type: generate_until
training_split: train
test_split: test
doc_to_text: "Q: {{question}}\nA:"
doc_to_target: "{{answers}}"
"""
CODED = LISTED.replace('"{{text}}\\nOpinion:\\n"', "!function utils.ask")
CODED = CODED.replace("doc_to_target: label", "doc_to_target: !function utils.right")
CODED = CODED.replace('["bad", "good"]', "!function utils.choices")
UTILS = """
def ask(doc):
    return "Is it good? " + doc.pop("text")
def right(doc):
    return 1 - doc["label"]
def choices(doc):
    return ["no", "yes"]
def docs(split):
    return split.filter(lambda row: row["label"] >= 0).map(lambda row: {"text": row["text"].upper()})
"""


def written(folder: Path, text: str, name: str = "task.yaml") -> Path:
    """A file of this text."""
    (folder / name).write_text(text)
    return folder / name


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows as jsonl."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
