"""Tasks from lm-evaluation-harness files: splits, local files, what is refused and what is said to be left out."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import pytest
from tests.tasks.harness import CODED, GENERATED, LISTED, UTILS, lines, written

from zotune.config import TrainConfig
from zotune.data.source import load_source
from zotune.errors import ConfigError, DataError
from zotune.resolve import read_file
from zotune.tasks import find
from zotune.yaml12 import parse_mapping


def test_the_task_of_a_file(tmp_path: Path) -> None:
    """Name, data set, splits, loss and metric; a test split goes before a validation split."""
    task = find(str(written(tmp_path, LISTED)))
    assert (task.name, task.hub, task.subset, task.train, task.test) == (
        "opinion", "someone/opinions", "plain", "train", "validation",
    )  # fmt: skip
    assert (task.loss, task.metric, task.untrained) == ("options", "accuracy", "")
    assert task.harness is not None and task.harness.notes == () and not task.harness.normed
    both = LISTED.replace("validation_split: validation", "validation_split: validation\ntest_split: test")
    assert (
        find(str(written(tmp_path, both + "dataset_kwargs: {revision: abc, trust_remote_code: true}\n"))).test == "test"
    )
    assert find(str(tmp_path / "task.yaml")).revision == "abc"
    asked = find(str(written(tmp_path, GENERATED)))
    assert (asked.loss, asked.metric) == ("target", "f1")
    # Without a metric_list the harness measures both accuracies.
    plain = find(str(written(tmp_path, LISTED[: LISTED.index("metric_list")])))
    assert plain.harness is not None and plain.harness.normed


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
        (
            ("description:", "process_docs: !function utils.docs\ndescription:"),
            "process_docs is the function utils.docs, code that is not run unasked. .*; or prepare the rows",
        ),
        (("description:", "use_prompt: promptsource:x\ndescription:"), "use_prompt is not read here"),
        (("description:", "doc_to_image: image\ndescription:"), "doc_to_image is not read here"),
        (("description:", "custom_dataset: !function utils.rows\ndescription:"), "custom_dataset is not read here"),
        (("description:", "descripton: x\ndescription:"), "'descripton' is no field of a task"),
        (("task: opinion", "task: [a, b]"), "is a group of tasks. Remedy: name its tasks one by one"),
        (("doc_to_target: label\n", ""), "has no doc_to_target"),
        (
            ("description:", "dataset_kwargs: {data_dir: x, field: y}\ndescription:"),
            "dataset_kwargs has data_dir, field",
        ),
        (("description:", "dataset_kwargs: [x]\ndescription:"), r"dataset_kwargs is \['x'\]"),
        (
            ("description:", "dataset_kwargs: {data_files: x.jsonl}\ndescription:"),
            "data_files are read with dataset_path",
        ),
        (("task: opinion", "task: [unclosed"), "is not valid YAML"),
    ],
)
def test_what_cannot_be_trained_is_refused(tmp_path: Path, change: tuple[str, str], said: str) -> None:
    """Before any row is read, with the reason; code of a task's folder is never imported."""
    assert change[0] in LISTED
    (tmp_path / "utils.py").write_text("raise SystemExit('run')\n")
    with pytest.raises(ConfigError, match=said):
        find(str(written(tmp_path, LISTED.replace(*change))))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("training_split: train\n", ""), "has no training_split, so it is not trained on. Remedy"),
        (("training_split: train\n", "training_split: validation\n"), "tests on the split 'validation', so it is not"),
        (("validation_split: validation\n", ""), "tests on the split 'train', so it is not"),
        (("training_split: train\n", "training_split: validation[:50%]\n"), "is a part of a split, which may hold"),
    ],
)
def test_what_is_tested_is_not_trained_on(tmp_path: Path, change: tuple[str, str], said: str) -> None:
    """Such a task gives rows to evaluate on, and none to train or to choose settings on."""
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps({"text": split, "label": 1}) + "\n")
    task = str(written(tmp_path, LISTED.replace(*change)))
    config = TrainConfig(model="m", task=task, data_dir=tmp_path, output_dir=tmp_path / "run")
    source = load_source(config, training=False)
    assert source.train is None and source.eval is not None and len(source.eval.rows) == 1
    for training, part in ((True, "test"), (False, "dev")):
        with pytest.raises(ConfigError, match=said):
            load_source(dataclasses.replace(config, eval_split=part), training)


def test_the_rows_of_a_run(tmp_path: Path) -> None:
    """Read from a folder; another prompt file is other training data, so a resume would notice."""
    for split, count in (("train", 6), ("validation", 3)):
        rows = [{"text": f"{split} {n}", "label": n % 2} for n in range(count)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    hashes = []
    for prompt in ("Opinion", "Verdict"):
        task = str(written(tmp_path, LISTED.replace("Opinion", prompt)))
        config = TrainConfig(model="m", task=task, data_dir=tmp_path, output_dir=tmp_path / "run", train_rows=4)
        source = load_source(config)
        assert source.train is not None and source.eval is not None
        assert len(source.train.rows) == 3 and len(source.eval.rows) == 3
        hashes.append((source.train.sha256, source.eval.sha256))
    assert hashes[0][0] != hashes[1][0] and hashes[0][1] == hashes[1][1]


def test_a_run_cannot_allow_itself_code(tmp_path: Path) -> None:
    """Only the flag does: the key in a run's config is an error, and a config that is written never has it."""
    (tmp_path / "utils.py").write_text(UTILS)
    for split, count in (("train", 6), ("validation", 3)):
        rows = [{"text": f"{split} {n}", "label": n % 2} for n in range(count)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = str(written(tmp_path, CODED))
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


@pytest.mark.parametrize(
    ("more", "stop", "most", "notes"),
    [
        ("", ("\n\n",), 256, ()),
        ('fewshot_delimiter: "##"\n', ("##",), 256, ()),
        (
            "generation_kwargs: {until: ['.', ';'], max_gen_toks: 9, do_sample: false, temperature: 0.7}",
            (".", ";"),
            9,
            (),
        ),
        (
            "generation_kwargs: {until: 'x', max_new_tokens: 8, num_beams: 1, do_sample: false, temperature: 1}",
            ("x",),
            8,
            (),
        ),
        ("generation_kwargs: {until: [], max_tokens: 3}", (), 3, ()),
        (
            "generation_kwargs: {until: ['.'], do_sample: true, temperature: 0.7, top_p: 0.9}",
            (".",),
            256,
            ("generation_kwargs: do_sample, temperature, top_p are left out, an answer is greedy",),
        ),
        ("generation_kwargs: {until: ['.'], temperature: 0.0}", (".",), 256, ()),
        (
            "num_fewshot: 5\nrepeats: 2\nprocess_results: !function utils.score\nfilter_list: [{name: x, filter: []}]\n"
            "metric_list: [{metric: exact_match}, {metric: f1}, {metric: !function utils.rouge}]",
            ("\n\n",),
            256,
            (
                "num_fewshot is 5, and no demonstrations are shown",
                "metric_list: exact_match, utils.rouge is not measured, token F1 is",
                "process_results is not applied",
                "filter_list is not applied",
                "repeats is 2, and each answer is asked for once",
            ),
        ),
        ("num_fewshot: 0\nmetadata: {version: 1}\ntag: [x]\nshould_decontaminate: true\n", ("\n\n",), 256, ()),
    ],
)
def test_what_is_left_out_is_said(
    more: str, stop: tuple[str, ...], most: int, notes: tuple[str, ...], tmp_path: Path
) -> None:
    """Where an answer ends is the file's; what the harness would do besides is named, and nothing else is."""
    harness = find(str(written(tmp_path, GENERATED + more))).harness
    assert harness is not None
    assert (harness.stop, harness.most_tokens, harness.notes) == (stop, most, notes)


def test_metrics_of_choices(tmp_path: Path) -> None:
    """acc and acc_norm are measured, others are named."""
    file = LISTED.replace("    aggregation: !function utils.mean\n", "  - metric: acc_norm\n  - metric: mcc\n")
    harness = find(str(written(tmp_path, file))).harness
    assert harness is not None and harness.normed
    assert harness.notes == ("metric_list: mcc is not measured, accuracy is",)


@pytest.mark.parametrize("wrong", ["{until: 3}", "{until: ['']}", "{max_gen_toks: 0}", "{max_gen_toks: x}", "x"])
def test_generation_that_makes_no_sense(wrong: str, tmp_path: Path) -> None:
    """Neither texts nor numbers."""
    with pytest.raises(ConfigError, match="task.yaml: generation_kwargs (has until|is 'x').*Remedy"):
        find(str(written(tmp_path, GENERATED + f"generation_kwargs: {wrong}\n")))


def test_notes_are_printed_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """When the rows of a run are read."""
    for split in ("train", "validation"):
        lines(tmp_path / f"{split}.jsonl", [{"text": split, "label": 1}] * 4)
    file = str(written(tmp_path, LISTED + "num_fewshot: 4\n"))
    config = TrainConfig(model="m", task=file, data_dir=tmp_path, output_dir=tmp_path / "run")
    with caplog.at_level(logging.WARNING, logger="zotune"):
        load_source(config)
    assert [record.getMessage() for record in caplog.records] == [
        f"{file}: num_fewshot is 4, and no demonstrations are shown (docs/tasks.md)."
    ]


FILES = LISTED.replace("dataset_path: someone/opinions\ndataset_name: plain", "dataset_path: json")


def test_data_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Of each split, one or several, beside the file or in the working folder; --data-dir goes before, and says so."""
    (tmp_path / "here").mkdir()
    (tmp_path / "task").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for folder, name in (("task", "a1"), ("task", "a2"), ("here", "test"), ("here", "validation"), ("here", "train")):
        lines(tmp_path / folder / f"{name}.jsonl", [{"text": f"{folder} {name}", "label": 1}] * 2)
    kwargs = "dataset_kwargs:\n  data_files:\n    train: a*.jsonl\n    validation: [test.jsonl]\n"
    file = str(written(tmp_path / "task", FILES + kwargs))
    config = TrainConfig(model="m", task=file, train_rows=8, output_dir=tmp_path / "run")
    source = load_source(config)
    assert source.train is not None and source.eval is not None
    assert {row["text"] for row in source.train.rows} <= {"task a1", "task a2"}
    assert [row["text"] for row in source.eval.rows] == ["here test"] * 2
    with caplog.at_level(logging.WARNING, logger="zotune"):
        other = load_source(dataclasses.replace(config, data_dir=tmp_path / "here"))
    assert other.eval is not None and other.eval.rows[0]["text"] == "here validation"
    assert "opinion: its own data_files are left aside for --data-dir" in caplog.text


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ("data_files: none.jsonl", "'none.jsonl' is neither in the working folder nor beside the file. Remedy"),
        ("data_files: both.jsonl", "'both.jsonl' is in the working folder and beside the file. Remedy: a whole path"),
        ("data_files: rows.csv", "rows.csv is no file of dataset_path json"),
        ("data_files: {validation: 3}", "data_files names 3. Remedy"),
        ("data_files: !function utils.rows", "data_files names '!function utils.rows'"),
    ],
)
def test_data_files_that_cannot_be_had(kwargs: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never another file in their place."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for folder in (tmp_path, tmp_path / "here"):
        (folder / "both.jsonl").write_text("{}")
    (tmp_path / "rows.csv").write_text("text\n")
    with pytest.raises(ConfigError, match=says):
        find(str(written(tmp_path, FILES + f"dataset_kwargs:\n  {kwargs}\n")))


def test_a_split_without_files(tmp_path: Path) -> None:
    """A text or a list is the split `train`, as the package datasets has it; others are named."""
    lines(tmp_path / "rows.jsonl", [{"text": "x", "label": 1}])
    file = str(written(tmp_path, FILES + "dataset_kwargs: {data_files: rows.jsonl}\n"))
    with pytest.raises(DataError, match="data_files has no split 'validation', it has train. Remedy"):
        load_source(TrainConfig(model="m", task=file, output_dir=tmp_path / "run"))
