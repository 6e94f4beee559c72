"""Tasks from lm-evaluation-harness files: prompts, candidates and answers by hand, splits, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest

from zotune.config import TrainConfig
from zotune.data.source import load_source
from zotune.errors import ConfigError, DataError
from zotune.resolve import read_file
from zotune.tasks import find
from zotune.tasks.lm_eval import MAX_BYTES
from zotune.yaml12 import parse_mapping

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
doc_to_choice: ["bad", "good {{text|length}}"]
metric_list:
  - metric: acc
    aggregation: !function utils.mean
"""
TEMPLATE = """
dataset_path: arc
output_type: multiple_choice
training_split: train
validation_split: validation
test_split: test
doc_to_text: question
doc_to_target: "{{choices.label.index(answerKey)}}"
doc_to_choice: "{{choices.text}}"
target_delimiter: "->"
"""
GENERATED = """
dataset_path: questions
output_type: generate_until
training_split: train
test_split: test
doc_to_text: "Q: {{question}}\\nA:"
doc_to_target: "{{answers}}"
"""


def written(folder: Path, text: str, name: str = "task.yaml") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def rendered(folder: Path, text: str, row: dict[str, Any]) -> Any:
    render = find(written(folder, text)).causal
    assert render is not None
    return render(row)


def test_a_list_of_choices(tmp_path: Path) -> None:
    """Description and prompt with their newlines as the harness has them, candidates behind a space, the index."""
    found = rendered(tmp_path, LISTED, {"text": "fine film", "label": 1})
    assert found.prompt == "Judge.\nfine film\nOpinion:\n"
    assert found.candidates == (" bad", " good 9") and found.right == (1,)
    task = find(str(tmp_path / "task.yaml"))
    assert (task.name, task.hub, task.subset, task.train, task.test) == (
        "opinion", "someone/opinions", "plain", "train", "validation",
    )  # fmt: skip
    assert (task.loss, task.metric) == ("options", "accuracy")


def test_choices_and_target_from_templates(tmp_path: Path) -> None:
    """ARC's form: a list written by a template, the index by another, a delimiter of its own."""
    row = {"question": "Which?", "choices": {"text": ["one", "it's two"], "label": ["A", "B"]}, "answerKey": "B"}
    found = rendered(tmp_path, TEMPLATE, row)
    assert found.prompt == "Which?" and found.candidates == ("->one", "->it's two") and found.right == (1,)
    assert find(str(tmp_path / "task.yaml")).test == "test"


def test_the_target_may_be_the_option_itself(tmp_path: Path) -> None:
    """A text that is one of the options, a truth value, and one that is none of them."""
    text = LISTED.replace("doc_to_target: label", "doc_to_target: '{{said}}'").replace(
        '"good {{text|length}}"', '"good"'
    )
    assert rendered(tmp_path, text, {"text": "x", "said": "good"}).right == (1,)
    assert rendered(tmp_path, LISTED, {"text": "x", "label": False}).right == (0,)
    with pytest.raises(DataError, match="doc_to_target gives 'fair', none of .*Remedy"):
        rendered(tmp_path, text, {"text": "x", "said": "fair"})


def test_a_generated_answer(tmp_path: Path) -> None:
    """The first answer is trained on, all count when one is generated, and F1 is measured."""
    found = rendered(tmp_path, GENERATED, {"question": "Who?", "answers": ["Ann", "Ann B."]})
    assert (found.prompt, found.candidates, found.answers) == ("Q: Who?\nA:", (" Ann",), ("Ann", "Ann B."))
    task = find(str(tmp_path / "task.yaml"))
    assert (task.loss, task.metric) == ("target", "f1")


def test_include(tmp_path: Path) -> None:
    """A file takes what it does not say itself from one beside it; never from another folder, never in a circle."""
    written(tmp_path, LISTED, "_base")
    task = find(written(tmp_path, "include: _base\ndataset_name: other\n"))
    assert (task.subset, task.name) == ("other", "opinion")
    for wrong in ("../_base", "/etc/passwd", "sub/_base"):
        with pytest.raises(ConfigError, match="is not a file beside it. Remedy"):
            find(written(tmp_path, f"include: {wrong}\n"))
    with pytest.raises(ConfigError, match="circle"):
        find(written(tmp_path, "include: task.yaml\n"))


@pytest.mark.parametrize("name", ["pipe.yaml", "link.yaml", "folder", '"a\\0b"', "large.yaml"])
def test_an_include_that_is_no_file(tmp_path: Path, name: str) -> None:
    """A pipe is not waited at, a link not followed, and a NUL is no name."""
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder").mkdir()
    (tmp_path / "elsewhere").write_text("a: 1\n")
    (tmp_path / "link.yaml").symlink_to("elsewhere")
    (tmp_path / "large.yaml").write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(ConfigError, match="cannot be read: it.* Remedy"):
        find(written(tmp_path, f"include: {name}\n"))


@pytest.mark.parametrize("target", ["9" * 9000, "\u00b2", "-1", "3"])
def test_a_target_that_is_no_index(tmp_path: Path, target: str) -> None:
    """Thousands of digits, a raised one, and one beyond the choices."""
    text = "dataset_path: x\ntest_split: t\noutput_type: multiple_choice\n"
    fields = "doc_to_text: q\ndoc_to_target: t\ndoc_to_choice: [a, b, c]\n"
    task = find(written(tmp_path, text + fields))
    with pytest.raises(DataError, match="doc_to_target gives .*none of .*Remedy"):
        task.causal({"q": "x", "t": target})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            ("validation_split: validation\n", "validation_split: [validation]\n"),
            "has no test_split or validation_split",
        ),
        (
            ("doc_to_target: label", "doc_to_target: !function utils.target"),
            "doc_to_target is the function utils.target, code that is not run unasked. Remedy: read utils.py",
        ),
        (("output_type: multiple_choice", "output_type: loglikelihood_rolling"), "is not trained"),
        (("description:", "process_docs: !function utils.docs\ndescription:"), "process_docs is Python"),
        (('doc_to_choice: ["bad", "good {{text|length}}"]', ""), "has no doc_to_choice"),
        (("task: opinion", "task: [unclosed"), "is not valid YAML"),
    ],
)
def test_what_cannot_be_trained_is_refused(tmp_path: Path, change: tuple[str, str], said: str) -> None:
    """Before any row is read, with the reason; code of a task's folder is never imported."""
    assert change[0] in LISTED
    (tmp_path / "utils.py").write_text("raise SystemExit('run')\n")
    with pytest.raises(ConfigError, match=said):
        find(written(tmp_path, LISTED.replace(*change)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("training_split: train\n", ""), "has no training_split, so it is not trained on. Remedy"),
        (("training_split: train\n", "training_split: validation\n"), "tests on the split 'validation', so it is not"),
        (("validation_split: validation\n", ""), "tests on the split 'train', so it is not"),
    ],
)
def test_what_is_tested_is_not_trained_on(tmp_path: Path, change: tuple[str, str], said: str) -> None:
    """Such a task gives rows to evaluate on, and none to train or to choose settings on."""
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps({"text": split, "label": 1}) + "\n")
    task = written(tmp_path, LISTED.replace(*change))
    config = TrainConfig(model="m", task=task, data_dir=tmp_path, output_dir=tmp_path / "run")
    source = load_source(config, training=False)
    assert source.train is None and source.eval is not None and len(source.eval.rows) == 1
    for training, part in ((True, "test"), (False, "dev")):
        with pytest.raises(ConfigError, match=said):
            load_source(dataclasses.replace(config, eval_split=part), training)


def test_a_choice_template_runs_nothing(tmp_path: Path) -> None:
    """What a template writes is read as a literal: an expression is refused."""
    text = LISTED.replace('["bad", "good {{text|length}}"]', "'{{text}}'")
    with pytest.raises(DataError, match="doc_to_choice gives no list"):
        rendered(tmp_path, text, {"text": "[__import__('os').getcwd()]", "label": 0})


def test_the_rows_of_a_run(tmp_path: Path) -> None:
    """Read from a folder; another prompt file is other training data, so a resume would notice."""
    for split, count in (("train", 6), ("validation", 3)):
        rows = [{"text": f"{split} {n}", "label": n % 2} for n in range(count)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    hashes = []
    for prompt in ("Opinion", "Verdict"):
        task = written(tmp_path, LISTED.replace("Opinion", prompt))
        config = TrainConfig(model="m", task=task, data_dir=tmp_path, output_dir=tmp_path / "run", train_rows=4)
        source = load_source(config)
        assert source.train is not None and source.eval is not None
        assert len(source.train.rows) == 3 and len(source.eval.rows) == 3
        hashes.append((source.train.sha256, source.eval.sha256))
    assert hashes[0][0] != hashes[1][0] and hashes[0][1] == hashes[1][1]


CODED = LISTED.replace("{{text}}\\nOpinion:\\n", "X").replace('doc_to_text: "X"', "doc_to_text: !function utils.ask")
CODED = CODED.replace("doc_to_target: label", "doc_to_target: !function utils.right")
CODED = CODED.replace('["bad", "good {{text|length}}"]', "!function utils.choices")
UTILS = """
def ask(doc):
    return "Is it good? " + doc.pop("text")
def right(doc):
    return 1 - doc["label"]
def choices(doc):
    return ["no", "yes"]
"""


def test_functions_of_the_folder_run_when_allowed(tmp_path: Path) -> None:
    """Prompt, choices and target from Python beside the file; the row itself stays; other code is another task."""
    (tmp_path / "utils.py").write_text(UTILS)
    file = written(tmp_path, CODED)
    with pytest.raises(
        ConfigError, match="doc_to_text is the function utils.ask, code that is not run unasked. .*--allow"
    ):
        find(file)
    task, row = find(file, allow_code=True), {"text": "fine film", "label": 1}
    assert task.causal is not None
    found = task.causal(row)
    assert (found.prompt, found.candidates, found.right) == ("Judge.\nIs it good? fine film", (" no", " yes"), (0,))
    assert row == {"text": "fine film", "label": 1}
    with pytest.raises(DataError, match="doc_to_target, utils.right, failed: KeyError: 'label'. Remedy"):
        task.causal({"text": "x"})
    (tmp_path / "utils.py").write_text(UTILS + "\n# changed\n")
    assert find(file, allow_code=True).digest != task.digest


@pytest.mark.parametrize(
    "name", ["../utils.ask", "sub.utils.ask", "/x/utils.ask", "utils", ".ask", "utils.", "link.ask"]
)
def test_functions_of_other_folders_never_run(tmp_path: Path, name: str) -> None:
    """Neither a path, nor a package, nor a link leads out of the file's folder."""
    inner = tmp_path / "inner"
    (inner / "sub").mkdir(parents=True)
    for folder in (tmp_path, inner / "sub"):
        (folder / "utils.py").write_text("raise SystemExit('run')\n")
    (inner / "link.py").symlink_to(tmp_path / "utils.py")
    with pytest.raises(ConfigError, match="(no function of a file beside it|is not valid YAML).*Remedy"):
        find(written(inner, CODED.replace("utils.ask", name)), allow_code=True)


def test_a_run_cannot_allow_itself_code(tmp_path: Path) -> None:
    """Only the flag does: the key in a run's config is an error, and a config that is written never has it."""
    (tmp_path / "utils.py").write_text(UTILS)
    for split, count in (("train", 6), ("validation", 3)):
        rows = [{"text": f"{split} {n}", "label": n % 2} for n in range(count)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = written(tmp_path, CODED)
    config = TrainConfig(
        model="m", task=file, data_dir=tmp_path, output_dir=tmp_path / "run", train_rows=4, allow_task_code=True
    )
    assert load_source(config).train is not None
    again = TrainConfig(**parse_mapping(config.to_yaml(), "c")[0])
    with pytest.raises(ConfigError, match="not run unasked"):
        load_source(again)
    (tmp_path / "config.yaml").write_text(config.to_yaml() + "allow_task_code: true\n")
    with pytest.raises(ConfigError, match="allow_task_code cannot be set by a file.*--allow-task-code"):
        read_file(tmp_path / "config.yaml")
