"""One model on several tasks: the figures of each task alone, folders found by name, and why a task cannot be had."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.models import one_thread as one_thread  # noqa: PLC0414 - a fixture of this module too

from zotune import evaluate_tasks as module
from zotune.config import TrainConfig
from zotune.errors import ConfigError, DataError, UserError
from zotune.evaluate_tasks import evaluate_tasks
from zotune.load import load_model
from zotune.revisit import evaluate_run
from zotune.session import Session
from zotune.train import train
from zotune.watch import Quiet

Config = Callable[..., TrainConfig]
OPINION = """
task: opinion
dataset_path: none
output_type: multiple_choice
test_split: test
doc_to_text: "{{sentence}} it was"
doc_to_target: label
doc_to_choice: [terrible, great]
"""


@pytest.fixture
def tasks(movies: Path, tmp_path: Path) -> Path:
    """Folders sst2 and opinion with the rows that other tests evaluate on, and a YAML beside them."""
    rows = [json.loads(line) for line in (movies / "eval.jsonl").read_text().splitlines()]
    lines = "".join(json.dumps({"sentence": row["text"], "label": row["label"]}) + "\n" for row in rows)
    for name, split in (("sst2", "validation"), ("opinion", "test")):
        (tmp_path / "tasks" / name).mkdir(parents=True)
        (tmp_path / "tasks" / name / f"{split}.jsonl").write_text(lines)
    (tmp_path / "tasks" / "opinion.yaml").write_text(OPINION)
    return tmp_path / "tasks"


def test_each_task_as_if_alone(config: Config, tasks: Path) -> None:
    """A run's weights on a built-in task and a file of the harness: what `evaluate_run` gives for either."""
    trained = config()
    train(trained, Quiet())
    run, opinion = trained.output_dir, str(tasks / "opinion.yaml")
    found = evaluate_tasks(trained, run, ["sst2", opinion], {"data_dir": tasks, "eval_rows": "8"}, Quiet())
    assert found["steps"] == 7 and [row["task"] for row in found["tasks"]] == ["sst2", "opinion"]
    for row, name in zip(found["tasks"], ("sst2", opinion), strict=True):
        alone = TrainConfig(
            model=trained.model, task=name, data_dir=tasks / row["task"], eval_rows=8, lr=1e-2, eps=1e-2, seed=4,
            device="cpu", output_dir=run,
        )  # fmt: skip
        expected = evaluate_run(alone, run, Quiet())
        assert {key: row[key] for key in expected if key != "steps"} == {
            k: v for k, v in expected.items() if k != "steps"
        }
        assert row["examples"] == 8
        bare = Session(alone, training=False).evaluate()
        assert bare is not None and row["loss"] != bare.loss


def test_a_task_that_cannot_be_evaluated(config: Config, tasks: Path) -> None:
    """It says why in its row; where none can, that is the command's error."""
    found = evaluate_tasks(config(), None, ["sst2", "rte"], {"data_dir": tasks}, Quiet())["tasks"]
    assert found[0]["accuracy"] is not None and found[0]["examples"] == 10
    assert set(found[1]) == {"task", "error"} and "has no file of the validation split" in found[1]["error"]
    with pytest.raises(DataError, match="has no file of the validation split"):
        evaluate_tasks(config(), None, ["rte"], {"data_dir": tasks}, Quiet())


def test_unknown_names_come_before_any_work(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """No model is loaded; lm-eval is asked where it is installed."""
    monkeypatch.setattr(module, "load_model", lambda config: pytest.fail("loaded"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="unknown task 'sst9'. The nearest is"):
        evaluate_tasks(config(), None, ["sst2", "sst9"], {}, Quiet())
    with pytest.raises(ConfigError, match="tasks names none"):
        evaluate_tasks(config(), None, [], {}, Quiet())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    monkeypatch.setattr(module, "_manager", lambda: type("Manager", (), {"all_tasks": ["arc_easy"]}))
    with pytest.raises(ConfigError, match="unknown task 'sst9'.*lm-eval has no such task either"):
        evaluate_tasks(config(), None, ["sst9"], {}, Quiet())


@pytest.mark.filterwarnings("ignore")  # other people's
@pytest.mark.parametrize(
    "choices",
    [["terrible", "great"], ["not good and not fine", "great"], ["very bad", "so good", "a dull mess", "fine"]],
)
@pytest.mark.parametrize("rows", [None, "4"])
def test_the_harness_itself(
    config: Config, tasks: Path, monkeypatch: pytest.MonkeyPatch, choices: list[str], rows: str | None
) -> None:
    """A task of lm-eval on the model in memory: both its accuracies are those that we measure with the same file."""
    harness = pytest.importorskip("lm_eval.tasks", reason="lm-eval is in the extra eval")
    text = OPINION.replace("[terrible, great]", json.dumps(choices)).replace("dataset_path: none", "dataset_path: json")
    text += f"dataset_kwargs:\n  data_files:\n    test: {tasks / 'opinion' / 'test.jsonl'}\n"
    text += "metric_list:\n  - metric: acc\n  - metric: acc_norm\n"
    (tasks / "own.yaml").write_text(text)
    (tasks / "harness").mkdir()
    (tasks / "harness" / "x.yaml").write_text(text.replace("task: opinion", "task: harness_opinion"))
    manager = harness.TaskManager(include_path=str(tasks / "harness"))
    monkeypatch.setattr(module, "_manager", lambda: manager)
    given = {} if rows is None else {"eval_rows": rows}
    names = [str(tasks / "own.yaml"), "harness_opinion"]
    ours, theirs = evaluate_tasks(config(), None, names, given, Quiet())["tasks"]
    assert theirs["examples"] == ours["examples"] == (10 if rows is None else 4)
    assert theirs["accuracy"] == pytest.approx(ours["accuracy"])
    assert theirs["lm_eval"]["acc_norm"] == pytest.approx(ours["acc_norm"])
    assert theirs["low"] <= theirs["accuracy"] <= theirs["high"] and theirs["lm_eval"]["acc"] == theirs["accuracy"]


def test_the_harness_is_told_what_the_model_reads(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval cuts its prompts to the positions that there are, also where it is asked for more."""
    given: dict[str, Any] = {}
    fakes = {
        "lm_eval": SimpleNamespace(simple_evaluate=lambda *_, **__: None),
        "lm_eval.models": SimpleNamespace(),
        "lm_eval.models.huggingface": SimpleNamespace(HFLM=lambda **named: given.update(named)),
    }
    for name, fake in fakes.items():
        monkeypatch.setitem(sys.modules, name, fake)
    monkeypatch.setattr(module, "_manager", lambda: None)
    settings = config("gpt2", max_length=600)
    with pytest.raises(UserError, match="lm-eval gives no result of its own for x"):
        module._harness(settings, load_model(settings), "x", {})
    assert given["max_length"] == 64
