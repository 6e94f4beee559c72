"""A run on a task, from the command line: train, resume, evaluate and replay agree; other kinds of model say so."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from zotune.config import TrainConfig
from zotune.errors import ConfigError, DataError
from zotune.history.branch import branch
from zotune.journal import read
from zotune.revisit import evaluate_run, replay
from zotune.session import Session
from zotune.train import resume, train
from zotune.watch import Quiet

# In the words of the tests' tokenizer; candidates of several lengths.
COPA = [
    {
        "premise": f"the {noun} was {how} .",
        "choice1": f"it is {word} and very",
        "choice2": f"the plot is a {other}",
        "question": "cause" if n % 2 else "effect",
        "label": n % 2,
    }
    for n, (noun, how, word, other) in enumerate(
        (noun, how, word, other)
        for noun in ("film", "cast", "script")
        for how in ("dull", "good")
        for word in ("warm", "great")
        for other in ("mess", "terrible film")
    )
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """COPA's splits: 24 and 10 rows."""
    for name, rows in (("train", COPA), ("validation", COPA[:10])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.fixture
def make(tiny: Callable[[str], Path], folder: Path, tmp_path: Path) -> Iterator[Any]:
    """`make(family, **options)`: a short run on COPA."""

    def build(family: str = "llama", **options: Any) -> TrainConfig:
        values = {
            "model": str(tiny(family)), "task": "copa", "data_dir": folder, "train_rows": 12, "lr": 1e-2, "eps": 1e-2,
            "steps": 3, "batch_size": 4, "seed": 1, "device": "cpu", "output_dir": tmp_path / "run", "lanes": "on",
            "threads": 1,
        }  # fmt: skip
        return TrainConfig(**{**values, **options})

    threads = torch.get_num_threads()
    yield build
    torch.set_num_threads(threads)


def test_a_branch_with_other_rows(make: Any, tmp_path: Path) -> None:
    """A branch may sample other rows of its task: the header has their hashes, so it goes on."""
    train(make(), Quiet())
    branch(make().output_dir, 2, tmp_path / "b", {"data_seed": "3", "eval_rows": "6"})
    before, after = (read(folder / "journal.zoj")[0] for folder in (make().output_dir, tmp_path / "b"))
    assert before["train_sha256"] != after["train_sha256"] and before["eval_sha256"] != after["eval_sha256"]
    assert resume(tmp_path / "b", Quiet())["eval_examples"] == 6


@pytest.mark.parametrize(
    ("family", "options"),
    [("llama", {}), ("gpt2", {"calibrated": True}), ("deep", {"scope": "last:2"}), ("t5", {"lanes": "auto"})],
)
def test_a_run(family: str, options: dict[str, Any], make: Any, tmp_path: Path) -> None:
    """Evaluation of the run gives the numbers of the training, replay its hash; a finished run resumes to itself."""
    config = make(family, **options)
    trained = train(config, Quiet())
    assert trained["eval_examples"] == 10 and 0 <= trained["accuracy_after"] <= 1 and trained["steps"] == 3
    assert trained["loss_after"] != trained["loss_before"]
    again = resume(config.output_dir, Quiet())
    assert again["weights_sha256"] == trained["weights_sha256"]
    found = evaluate_run(config, config.output_dir, Quiet())
    assert (found["loss"], found["accuracy"]) == (trained["loss_after"], trained["accuracy_after"])
    assert replay(config.output_dir, True, Quiet())["weights_sha256"] == trained["weights_sha256"]


def test_candidates_share_the_prompt_and_the_lower_layers(make: Any) -> None:
    """Sharing, lanes and reused activations at once: the losses are those without any of them."""
    found = []
    for options in ({"scope": "last:2"}, {"scope": "last:2", "lanes": "off", "reuse_mb": 0}):
        session = Session(make("deep", **options)).begin()
        assert bool(session.reuse.depth) == ("reuse_mb" not in options)
        if "reuse_mb" in options:
            session.measure._packed = None  # type: ignore[attr-defined]
        else:
            assert session.measure._packed is torch.float32  # type: ignore[attr-defined]
        evaluation = session.evaluate()
        assert evaluation is not None
        session.step()
        found.append((evaluation.loss, evaluation.accuracy, *session.optimizer.probes[0].losses))
    assert found[0] == pytest.approx(found[1], abs=2e-5)


def test_changed_rows_stop_a_resume(make: Any, folder: Path) -> None:
    """The rows of a task are part of what the run began with."""
    from zotune.errors import RunError

    config = make()
    train(config, Quiet())
    lines = (folder / "train.jsonl").read_text().splitlines()
    (folder / "train.jsonl").write_text("\n".join([*lines[1:], lines[0].replace("dull", "bad")]))
    with pytest.raises(RunError, match="the training rows have changed"):
        resume(config.output_dir, Quiet())


def test_kinds_of_model(make: Any) -> None:
    """A task says which kinds of model it has a prompt for, and who cannot be calibrated."""
    with pytest.raises(
        ConfigError, match="task copa has a prompt for causal models only. Remedy: .* one of sst2, rte, ss"
    ):
        Session(make("bert"))
    config = make("llama")
    for name in ("train", "test"):
        (config.data_dir / f"{name}.json").write_text(json.dumps([{"text": "who", "label": 3}] * 4))
    (config.data_dir / "train.jsonl").unlink()
    with pytest.raises(ConfigError, match="task trec has a prompt for masked models only. Remedy: .* sst2, rte, cb"):
        Session(make("llama", task="trec"))
    with pytest.raises(ConfigError, match="task sst2 is not calibrated with this model"):
        for name in ("train", "dev"):
            (config.data_dir / f"{name}.json").write_text(json.dumps([{"sentence": "film", "label": 0}] * 4))
        (config.data_dir / "validation.jsonl").unlink()
        Session(make("bert", task="sst2", calibrated=True))


def test_a_masked_model(make: Any, folder: Path) -> None:
    """SST-2 in the style of LM-BFF on a masked model: one position, one token per word."""
    rows = [
        {"sentence": f"{noun} is {how}", "label": n % 2}
        for noun in ("film", "plot")
        for n, how in enumerate(("dull", "good"))
    ]
    for name in ("train", "dev"):
        (folder / f"{name}.json").write_text(json.dumps(rows * 3))
    for name in ("train", "validation"):
        (folder / f"{name}.jsonl").unlink()
    trained = train(make("bert", task="sst2", shots=2, lanes="auto"), Quiet())
    assert trained["steps"] == 3 and trained["eval_examples"] == 12


def test_a_bad_row_is_named(make: Any, folder: Path) -> None:
    """With its task, its part and its number."""
    (folder / "validation.jsonl").write_text(json.dumps({**COPA[0], "question": "why"}))
    with pytest.raises(DataError, match="task copa, test rows: Row 1: column 'question' is 'why'"):
        Session(make())
