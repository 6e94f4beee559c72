"""Replaying, evaluating and listing a run that is there; its folder is only read."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from zotune.config import TrainConfig
from zotune.errors import ConfigError, DataError, JournalError, RunError
from zotune.export import export
from zotune.history.checkout import checkout
from zotune.history.verify import verify
from zotune.journal import HashRecord, Journal
from zotune.journal import read as read_journal
from zotune.load import load_model
from zotune.resolve import config_of
from zotune.revisit import evaluate_run, log_rows, replay
from zotune.run import RunPaths
from zotune.train import train
from zotune.watch import Quiet
from zotune.weights import weights_sha256

Config = Callable[..., TrainConfig]


class Noting:
    """A watcher that keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def eval(self, step: int, result: Any) -> None:
        self.said.append(f"eval {step}")


@pytest.mark.parametrize("scope", ["full", "lora"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", ["mezo", "sparse_mezo", "lozo"])
def test_replay_is_the_run(config: Config, tmp_path: Path, dtype: str, scope: str, method: str) -> None:
    """The journal (of 200 steps for MeZO) gives the trained weights to the bit, without data or a forward pass."""
    steps = 200 if method == "mezo" else 30
    options = {"dtype": dtype, "scope": scope, "method": method, "steps": steps, "batch_size": 2, "eval": None}
    trained = train(config(**options, lr=1e-3, weight_decay=0.01), Quiet())
    # Neither rows nor snapshots are needed.
    path = tmp_path / "run" / "config.yaml"
    path.write_text(path.read_text().replace("train.jsonl", "gone.jsonl"))
    found = replay(tmp_path / "run", True, Quiet())
    assert found["verified"] and found["steps"] == steps
    assert found["weights_sha256"] == found["recorded_sha256"] == trained["weights_sha256"]
    assert found["journal_bytes"] == trained["journal_bytes"]
    base = load_model(config(**options))
    named = {name: p for name, p in base.named_parameters() if p.requires_grad}
    assert weights_sha256(named) != trained["weights_sha256"]


@pytest.mark.parametrize("method", ["agzo", "aimzo"])
@pytest.mark.parametrize("scope", ["full", "lora&last:1"])
def test_a_method_that_reads_the_inputs_is_replayed_with_the_rows(
    config: Config, tmp_path: Path, method: str, scope: str
) -> None:
    """Replay, verify, checkout, export and eval give the trained weights to the bit; other rows are refused."""
    arguments = {"rank": 2} if method == "agzo" else {"width": 6, "head": 2, "active": 4, "probes": 3}
    options = {"method": method, "method_args": arguments, "scope": scope, "steps": 5, "snapshot_every": 2}
    trained, heard = train(config(**options), Quiet()), Noting()
    run = tmp_path / "run"
    found = replay(run, True, heard, tmp_path / "model")
    assert found["weights_sha256"] == found["recorded_sha256"] == trained["weights_sha256"]
    assert any("replayed with the run's rows" in line for line in heard.said)
    assert verify(run, Quiet())["weights_sha256"] == trained["weights_sha256"]
    assert checkout(run, 5, tmp_path / "last", Quiet())["weights_sha256"] == trained["weights_sha256"]
    assert checkout(run, 3, tmp_path / "third", Quiet())["weights_sha256"] != trained["weights_sha256"]
    assert export(run, tmp_path / "exported", Quiet())["weights_sha256"] == trained["weights_sha256"]
    assert evaluate_run(config_of(RunPaths(run)), run, Quiet())["loss"] == trained["loss_after"]
    rows = RunPaths(run).config.read_text()
    other = tmp_path / "other.jsonl"
    other.write_text('{"text": "fine", "label": 1}\n{"text": "a mess", "label": 0}\n')
    path = next(line for line in rows.splitlines() if line.startswith("train:"))
    RunPaths(run).config.write_text(rows.replace(path, f"train: {other}"))
    with pytest.raises(RunError, match="the training rows have changed"):
        replay(run, True, Quiet())


@pytest.fixture
def run(config: Config) -> Path:
    """A finished run of seven steps."""
    train(config(queries=2, snapshot_every=3, scope="last:1"), Quiet())
    return config().output_dir


def rewritten(run: Path, keep: Callable[[Any], Any]) -> None:
    """The journal with other records, each whole."""
    path = run / "journal.zoj"
    header, records, _ = read_journal(path)
    path.unlink()
    with Journal.create(path, header) as journal:
        for record in filter(None, map(keep, records)):
            journal.append(record)


def test_nothing_is_written(run: Path) -> None:
    """Replaying, evaluating and listing change no byte and take no lock."""

    def content() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in run.rglob("*") if path.is_file()}

    before = content()
    replay(run, True, Quiet())
    evaluate_run(config_of(RunPaths(run)), run, Quiet())
    log_rows(run)
    assert content() == before


def test_torn_tail_is_said(run: Path) -> None:
    """A torn record at the end is left out, said, and cannot verify; the file stays as it is."""
    path = run / "journal.zoj"
    path.write_bytes(path.read_bytes()[:-3])
    size, watch = path.stat().st_size, Noting()
    found = replay(run, False, watch)
    assert (found["steps"], found["verified"], found["recorded_sha256"]) == (7, False, None)
    assert "bytes of an unfinished record" in watch.said[0]
    with pytest.raises(RunError, match="no hash of its last step, 7. Remedy: `zotune resume"):
        replay(run, True, Quiet())
    assert path.stat().st_size == size


def test_unfinished_run(run: Path) -> None:
    """Without its last steps a run replays to where it is."""
    rewritten(run, lambda record: record if record.step <= 3 and not isinstance(record, HashRecord) else None)
    assert replay(run, False, Quiet())["steps"] == 4
    assert len(log_rows(run)) == 4


def test_wrong_hash(run: Path) -> None:
    """A recorded hash that the weights do not have is an error whether asked to verify or not, naming the step."""
    rewritten(run, lambda record: HashRecord(3, "00" * 32) if isinstance(record, HashRecord) else record)
    for asked in (True, False):
        with pytest.raises(RunError, match="after 3 steps the weights hash to"):
            replay(run, asked, Quiet())


def test_corrupt_journal(run: Path) -> None:
    """Damage before the end names the byte, for all three."""
    path = run / "journal.zoj"
    data = bytearray(path.read_bytes())
    data[-100] ^= 4
    path.write_bytes(data)
    for look in (
        lambda: replay(run, False, Quiet()),
        lambda: evaluate_run(config_of(RunPaths(run)), run, Quiet()),
        lambda: log_rows(run),
    ):
        with pytest.raises(JournalError, match=r"byte \d+"):
            look()


def test_changed_base_below_the_scope(run: Path, config: Config, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """A base model that differs in a frozen weight would pass for the trained one: replay and eval both refuse."""
    model = load_model(config())
    with torch.no_grad():
        model.get_parameter("model.embed_tokens.weight")[3, 3] += 1e-3
    model.save_pretrained(tmp_path / "m")  # type: ignore[operator]
    for path in tiny("llama").glob("tokenizer*"):
        (tmp_path / "m" / path.name).write_bytes(path.read_bytes())
    path = run / "config.yaml"
    path.write_text(path.read_text().replace(str(tiny("llama")), str(tmp_path / "m")))
    with pytest.raises(
        RunError,
        match="base model of .* has changed since the run began: .* the journal recorded .* Remedy",
    ):
        replay(run, False, Quiet())
    with pytest.raises(
        RunError,
        match="base model of .* has changed since the run began: .* the journal recorded .* Remedy",
    ):
        evaluate_run(config_of(RunPaths(run)), run, Quiet())


SAVED = [{"scope": "full"}, {"scope": "lora"}, {"scope": "prefix"}, {"dtype": "bfloat16", "scope": "last:1"}]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT reading a model of transformers
@pytest.mark.parametrize("options", SAVED)
def test_saved_model(config: Config, tmp_path: Path, options: dict[str, Any]) -> None:
    """`to` holds the trained weights as Hugging Face loads them, tokenizer included."""
    from peft import PeftModel

    result = train(config(**options), Quiet())
    replay(tmp_path / "run", True, Quiet(), to=tmp_path / "saved")
    assert list((tmp_path / "saved").glob("tokenizer*"))
    if options["scope"] in ("lora", "prefix"):
        model: Any = PeftModel.from_pretrained(load_model(config()), tmp_path / "saved")
        values = {name: p for name, p in model.named_parameters() if "lora_" in name or "prompt_encoder" in name}
    else:
        model = load_model(config(model=str(tmp_path / "saved"), dtype=options.get("dtype", "float32")))
        header, _, _ = read_journal(tmp_path / "run" / "journal.zoj")
        named = dict(model.named_parameters())
        values = {parameter["name"]: named[parameter["name"]] for parameter in header["parameters"]}
    assert weights_sha256(values) == result["weights_sha256"]


def test_evaluate_run(run: Path, config: Config, movies: Path) -> None:
    """A run's journal leads to the accuracy that training ended with; a bare model has that of before."""
    rows = train(config(queries=2, scope="last:1", output_dir=run.parent / "again"), Quiet())
    watch = Noting()
    after = evaluate_run(config_of(RunPaths(run)), run, watch)
    assert after == {
        "loss": rows["loss_after"], "accuracy": rows["accuracy_after"], "examples": 10,
        "low": rows["low_after"], "high": rows["high_after"], "steps": 7,
    }  # fmt: skip
    assert watch.said == ["eval 7"]
    before = evaluate_run(config(), None, Quiet())
    assert before["loss"] == rows["loss_before"] != after["loss"] and before["steps"] == 0
    assert evaluate_run(config(eval=movies / "train.jsonl"), run, Quiet())["examples"] == 22
    with pytest.raises(ConfigError, match="no rows to evaluate on. Remedy: --eval FILE"):
        evaluate_run(config(eval=None), run, Quiet())


def test_evaluation_when_files_have_moved(run: Path, movies: Path) -> None:
    """Training rows are needed for the order of the labels alone; all else that has moved is named with its key."""
    path = run / "config.yaml"
    text, paths = path.read_text(), RunPaths(run)
    before = evaluate_run(config_of(paths), run, Quiet())
    path.write_text(text.replace("train.jsonl", "gone.jsonl"))
    gone, there = config_of(paths), movies / "train.jsonl"
    with pytest.raises(
        DataError, match=r"gone.jsonl does not exist .* correct `train:` in .*config.yaml, or give --labels"
    ):
        evaluate_run(dataclasses.replace(gone, eval=there), run, Quiet())
    assert evaluate_run(dataclasses.replace(gone, labels=[0, 1]), run, Quiet()) == before
    assert evaluate_run(dataclasses.replace(gone, train=there), run, Quiet()) == before
    path.write_text(text.replace("eval.jsonl", "gone.jsonl"))
    with pytest.raises(
        DataError, match=r"gone.jsonl does not exist any more. Remedy: correct `eval:` in .*config.yaml"
    ):
        evaluate_run(config_of(paths), run, Quiet())
    assert evaluate_run(dataclasses.replace(config_of(paths), eval=there), run, Quiet())["examples"] == 22


def test_log_rows(run: Path) -> None:
    """Every step with its losses, their mean, and the gradient that the metrics recorded."""
    import json

    rows = log_rows(run)
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines() if '"loss"' in line]
    logged = [row for row in logged if "eval" not in row]
    assert [row["step"] for row in rows] == list(range(7)) and len(logged) == 7
    for row, metric in zip(rows, logged, strict=True):
        assert len(row["losses"]) == 4 and row["lr"] == metric["lr"] == 1e-2
        assert row["loss"] == metric["loss"] == math.fsum(row["losses"]) / 4
        assert row["projected_gradient"] == metric["projected_gradient"] != 0
    assert rows[2]["projected_gradient"] == pytest.approx((rows[2]["losses"][0] - rows[2]["losses"][1]) / (4 * 1e-2))
    (run / "metrics.jsonl").unlink()
    assert [sorted(row) for row in log_rows(run)] == [["loss", "losses", "lr", "step"]] * 7


def test_no_run(tmp_path: Path) -> None:
    """A folder that holds no run is said by name."""
    for look in (lambda: replay(tmp_path, False, Quiet()), lambda: log_rows(tmp_path / "none")):
        with pytest.raises(RunError, match="Remedy: name a"):
            look()
