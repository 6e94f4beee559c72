"""A model's folder or a run's folder of which one file is anything: a result, or the documented error.

Never another exception, a wait at a pipe, or memory without bound. The slow ones are the same with many more examples.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from tests.test_fuzz import BOTH, JSON, ODD, REFUSED, TAKEN, outcomes, refused
from tests.tiny import save_rows, save_tiny

from zotune.config import TrainConfig
from zotune.errors import UserError
from zotune.history.branch import branch
from zotune.history.copy import copy
from zotune.history.diff import diff
from zotune.history.undo import undo
from zotune.journal import Journal, read
from zotune.listing import runs_below
from zotune.load import load_model, load_tokenizer
from zotune.machine import is_shortage
from zotune.plan import _measured
from zotune.push import card
from zotune.report import write_report
from zotune.resolve import config_of
from zotune.revisit import log_rows, replay
from zotune.run import RunPaths
from zotune.train import resume
from zotune.train import train as start
from zotune.watch import Quiet

# --- a model's folder -------------------------------------------------------------------------------------------------


def models(base: Path, folder: Path, data: Any) -> str:
    """A model whose config.json, index, generation_config.json or tokenizer_config.json is anything."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(base, folder)
    name = data.draw(st.sampled_from(["config.json", "model.safetensors.index.json", "tokenizer_config.json"]))
    path = folder / name
    if data.draw(st.booleans()) and path.exists():
        values = json.loads(path.read_bytes())
        key = data.draw(st.sampled_from([*sorted(values), "quantization_config", "auto_map", "transformers_weights"]))
        values[key] = data.draw(ODD | JSON)
        path.write_text(json.dumps(values))
    else:
        path.write_bytes(data.draw(JSON.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=40)))
    settings = TrainConfig(model=str(folder), train=Path("t"), output_dir=Path("o"), device="cpu")
    try:
        with warnings.catch_warnings():  # transformers warns of odd values
            warnings.simplefilter("ignore")
            load_tokenizer(settings)
            load_model(settings)
    except (UserError, MemoryError) as error:  # a size that no machine has is a shortage, which the command explains
        return REFUSED if isinstance(error, MemoryError) else refused(error)
    except RuntimeError as error:
        assert is_shortage(error), error
        return REFUSED
    return TAKEN


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A model and its tokenizer."""
    save_tiny("llama", tmp_path / "base")
    return tmp_path / "base"


def test_model(base: Path, tmp_path: Path) -> None:
    """Any file of a model: it loads, or UserError; never another exception, code that runs or a wait."""
    assert outcomes(40, lambda data: models(base, tmp_path / "m", data)) == BOTH


@pytest.mark.slow
def test_model_long(base: Path, tmp_path: Path) -> None:
    """The same, 1,000 times."""
    assert outcomes(1000, lambda data: models(base, tmp_path / "m", data)) == BOTH


# --- a run's folder ---------------------------------------------------------------------------------------------------

NAMES = ("lock", "metrics.jsonl", "timing.jsonl", "COMPLETE", "meta.json", "header", "config.yaml")
NUMBER = st.sampled_from([0, 1, 7, 0.5, "nan", "inf", 10**400, 2**63, -1, True, None, [], {}, "x", "0.5"])
METRICS = st.fixed_dictionaries(
    {"step": NUMBER},
    optional={
        "loss": NUMBER, "projected_gradient": NUMBER, "lr": NUMBER,
        "eval": NUMBER | st.dictionaries(st.sampled_from("loss accuracy examples low high f1".split()), NUMBER),
    },
)  # fmt: skip
TIMING = st.dictionaries(st.sampled_from(["steps", "seconds", "peak_memory_bytes"]), NUMBER)


def damage(run: Path, data: Any) -> None:
    """One file of a run is something else: any bytes, brackets without end, or the right shape with odd values."""
    name = data.draw(st.sampled_from(NAMES))
    line = JSON | ODD
    if name in ("metrics.jsonl", "timing.jsonl"):
        line = line | (METRICS if name == "metrics.jsonl" else TIMING)
    content = data.draw(
        st.lists(line, min_size=1, max_size=3).map(
            lambda rows: "".join(json.dumps(row) + "\n" for row in rows).encode()
        )
        | st.binary(max_size=60)
        | st.just(b"[" * 100_000)
    )
    journal = run / "journal.zoj"
    if name == "header":
        header, records, _ = read(journal)
        header[data.draw(st.sampled_from(sorted(header)))] = data.draw(ODD | JSON)
        journal.unlink()
        with contextlib.suppress(ValueError):  # NaN is no JSON
            with Journal.create(journal, header) as written:
                for record in records:
                    written.append(record)
    elif name in ("COMPLETE", "meta.json"):
        folder = run / "snapshots" / "step-0000000004"
        (folder / name).write_bytes(content)
        if name == "meta.json":
            sizes = {part: (folder / part).stat().st_size for part in ("tensors.safetensors", "meta.json")}
            (folder / "COMPLETE").write_text(json.dumps(sizes))
    else:
        old = (run / name).read_bytes() if (run / name).exists() and data.draw(st.booleans()) else b""
        (run / name).write_bytes(old + content)


def runs(whole: Path, folder: Path, slow: bool, data: Any) -> str:
    """Each reader of a run's folder, and with `slow` those that load the model, on a damaged one."""
    ended = set()
    acts: dict[str, Callable[[Path], Any]] = {
        "log": log_rows,
        "ls": lambda run: runs_below(run.parent),
        "report": lambda run: write_report([run], folder.parent / "page.html"),
        "cp": lambda run: copy(run, folder.parent / "copy"),
        "card": lambda run: card(RunPaths(run).check(), config_of(RunPaths(run)), "me/it", "journal"),
        "branch": lambda run: branch(run, 1, folder.parent / "branch", {}),
        "diff": lambda run: diff(run, whole),
        "plan": _measured,
        "undo": lambda run: undo(run, 1),
    }
    if slow:
        acts |= {"replay": lambda run: replay(run, False, Quiet()), "resume": lambda run: resume(run, Quiet())}
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    damage(folder, data)
    for act in acts.values():
        for left in ("copy", "branch"):
            shutil.rmtree(folder.parent / left, ignore_errors=True)
        try:
            act(folder)
            ended.add(TAKEN)
        except UserError as error:
            ended.add(refused(error))
    return REFUSED if REFUSED in ended else TAKEN


@pytest.fixture
def whole_run(base: Path, tmp_path: Path) -> Path:
    """A run that was stopped behind its snapshot of step 4."""
    save_rows(tmp_path)
    settings = TrainConfig(
        model=str(base), train=tmp_path / "train.jsonl", eval=tmp_path / "eval.jsonl", label_words=["bad", "great"],
        method="lozo_m", lr=1e-2, eps=1e-2, steps=7, snapshot_every=2, device="cpu", output_dir=tmp_path / "whole",
    )  # fmt: skip
    start(settings, Quiet())
    undo(tmp_path / "whole", 2)
    return tmp_path / "whole"


def test_run(whole_run: Path, tmp_path: Path) -> None:
    """Any file of a run's folder: what reads it gives a result or UserError."""
    assert outcomes(60, lambda data: runs(whole_run, tmp_path / "d" / "run", False, data)) == BOTH


@pytest.mark.slow
def test_run_long(whole_run: Path, tmp_path: Path) -> None:
    """The same 600 times, replayed and resumed as well."""
    assert outcomes(600, lambda data: runs(whole_run, tmp_path / "d" / "run", True, data)) == BOTH
