"""The real commands on a tiny model: what they print, what they return, and what they say to bad input."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zotune.config import NEVER_FROM_FILE, OPTIONS, TrainConfig
from zotune.run import RunFolder

Line = Callable[..., list[str]]

RESULT = {"steps", "weights_sha256", "journal_bytes", "seconds"}


@pytest.fixture
def line(config: Callable[..., TrainConfig], tmp_path: Path) -> Line:
    """`line(family, **options)`: the command line of a run; None leaves an option out."""

    def make(family: str = "llama", **options: Any) -> list[str]:
        settings = config(family)
        names = ("model", "train", "eval", "template", "label_words", "lr", "eps", "steps", "batch_size", "device")
        values = {name: getattr(settings, name) for name in names}
        values |= {"threads": 1, "output_dir": tmp_path / "run", "steps": 4, **options}
        words = ["train", "--json"]
        for name, value in values.items():
            if value is not None:
                flag = "--" + name.replace("_", "-")
                words += [flag, ",".join(map(str, value)) if isinstance(value, list) else str(value)]
        return words

    return make


def last(outcome: Any) -> Any:
    """The JSON that a command printed: the only line of stdout."""
    assert outcome.stdout.count("\n") == 1, outcome
    return json.loads(outcome.stdout)


def test_train_resume_replay_eval_log(cli: Any, line: Line, tmp_path: Path, movies: Path) -> None:
    """One run through all commands: the promised keys, the same hash everywhere."""
    run = tmp_path / "run"
    trained = cli(*line())
    assert trained.code == 0, trained.stderr
    result = last(trained)
    assert set(result) >= RESULT | {"accuracy_before", "accuracy_after"}
    assert result["steps"] == 4 and result["journal_bytes"] == (run / "journal.zoj").stat().st_size
    assert "step 4/4" in trained.stderr and "evaluation after 4 steps: accuracy" in trained.stderr

    resumed = last(cli("resume", run, "--json"))
    assert set(resumed) >= RESULT | {"accuracy_before", "accuracy_after"}
    measured = {"seconds", "peak_memory_bytes", "foreseen_memory_bytes"}
    assert {key: resumed[key] for key in resumed if key not in measured} == {
        key: result[key] for key in result if key not in measured
    }
    assert 0.5 < result["foreseen_memory_bytes"] / result["peak_memory_bytes"] < 2

    replayed = last(cli("replay", run, "--verify", "--to", tmp_path / "saved", "--json"))
    assert set(replayed) >= RESULT and replayed["verified"] is True
    assert replayed["weights_sha256"] == result["weights_sha256"] and replayed["steps"] == 4

    scored = last(cli("eval", run, "--json"))
    assert scored["accuracy"] == result["accuracy_after"] and scored["loss"] == result["loss_after"]
    assert scored["examples"] == 10 and scored["low"] <= scored["accuracy"] <= scored["high"]
    flags = ["--eval", movies / "eval.jsonl", "--label-words", "terrible,great", "--template", "{{ text }} it was"]
    bare = last(cli("eval", "--model", tmp_path / "saved", *flags, "--json"))
    assert bare["loss"] == scored["loss"]

    rows = last(cli("log", run, "--json"))
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert set(rows[0]) == {"step", "lr", "losses", "loss", "projected_gradient"} and len(rows[0]["losses"]) == 2


def test_methods(cli: Any) -> None:
    """The table with the promised keys."""
    rows = last(cli("methods", "--json"))
    promised = "mezo sparse_mezo lozo lozo_m loren agzo curvzo grzo fzoo aimzo hizoo meazo subzero zo_muon conmezo"
    assert {row["name"] for row in rows} == {*promised.split(), "kerzoo", "es", "eggroll", "qzo"}
    assert all(set(row) == {"name", "arxiv", "forwards_per_step", "state", "replayable"} for row in rows)


def test_without_eval_set(cli: Any, line: Line) -> None:
    """No eval set: no accuracies, and no made-up ones."""
    result = last(cli(*line(eval=None)))
    assert RESULT <= set(result) and not any(key.startswith("accuracy") for key in result)


def test_a_run_whose_weights_overflow(cli: Any, line: Line, tmp_path: Path) -> None:
    """Its summary says that the loss is nan and nothing is right, and so does that of a resume."""
    words = [word for word in line(steps=1, lr="1e6", eps="1e-2", dtype="float16") if word != "--json"]
    for outcome in (cli(*words), cli("resume", tmp_path / "run")):
        assert outcome.code == 0 and " before, nan after" in outcome.stdout, outcome
        assert " before, 0.0 % after" in outcome.stdout


def test_config_file_flags_and_python_agree(cli: Any, line: Line, tmp_path: Path) -> None:
    """A run's own config.yaml, with another folder, is the same run; so are the same names from Python."""
    import yaml

    from zotune.train import train
    from zotune.watch import Quiet

    first = last(cli(*line(method="lozo", queries=2), "--rank", "3"))
    file = tmp_path / "run" / "config.yaml"
    again = last(cli("train", "--config", file, "--output-dir", tmp_path / "again", "--json"))
    assert again["weights_sha256"] == first["weights_sha256"]
    values = yaml.safe_load(file.read_text())
    assert set(values) == set(OPTIONS) - set(NEVER_FROM_FILE)
    third = train(TrainConfig(**{**values, "output_dir": tmp_path / "third"}), Quiet())
    assert third["weights_sha256"] == first["weights_sha256"]
    other = last(cli("train", "--config", file, "--output-dir", tmp_path / "other", "--rank", "1", "--json"))
    assert other["weights_sha256"] != first["weights_sha256"]


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("bert", {"scope": "last:1", "template": "{{ text }} it was {{ mask }}"}),
        ("t5", {"dtype": "bfloat16"}),
        ("gpt2", {"scope": "lora", "micro_batch_size": 4, "lora_targets": "c_attn"}),
        ("llama", {"label_words": None, "template": None, "scope": "biases|x"}),
        ("llama", {"label_words": None, "template": None, "scope": "regex:mlp&last:2", "method": "sparse_mezo"}),
    ],
)
def test_other_runs(cli: Any, line: Line, tmp_path: Path, family: str, options: dict[str, Any]) -> None:
    """Masked, encoder-decoder, adapter and language-model runs train and replay; a wrong scope is refused."""
    outcome = cli(*line(family, **options))
    if options.get("scope") == "biases|x":
        assert outcome.code == 2 and "unknown scope 'biases|x'. Remedy: full, norms" in outcome.stderr
        return
    assert outcome.code == 0, outcome.stderr
    replayed = last(cli("replay", tmp_path / "run", "--verify", "--json"))
    assert replayed["weights_sha256"] == last(outcome)["weights_sha256"]


# --- bad input --------------------------------------------------------------------------------------------------------


def rows(path: Path, *lines: Any) -> Path:
    """A jsonl file."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


FILM = {"text": "a good film", "label": 1}
MASK = "{{ text }} it was {{ mask }}"

BAD: dict[str, tuple[Callable[[Path], dict[str, Any]], int, str]] = {
    "missing train file": (lambda p: {"train": p / "no.jsonl"}, 3, r"no\.jsonl"),
    "missing eval file": (lambda p: {"eval": p / "no.jsonl"}, 3, r"no\.jsonl"),
    "unknown kind of file": (lambda p: {"train": rows(p / "a.xml", FILM)}, 3, r"a\.xml"),
    "not JSON": (lambda p: {"train": rows(p / "a.jsonl", FILM, [1])}, 3, r"a\.jsonl, line 2: a JSON list"),
    "missing text column": (
        lambda p: {"train": rows(p / "a.jsonl", {"review": "x", "label": 0}, {"review": "y", "label": 1})}, 3,
        r"a\.jsonl: .*column text is missing. Columns found: review, label\.",
    ),
    "missing label column": (
        lambda p: {"train": rows(p / "a.jsonl", {"text": "x", "stars": 0})}, 3,
        r"a\.jsonl: Row 1 has no column 'label'; columns found: text, stars\.",
    ),
    "missing column of a language model": (
        lambda p: {"label_words": None, "template": None, "text_column": "body"}, 3,
        r"train\.jsonl: Row 1 has no column 'body'; columns found: text, label\.",
    ),
    "unknown label in eval": (
        lambda p: {"eval": rows(p / "a.jsonl", FILM, {"text": "x", "label": 9})}, 3, r"a\.jsonl: Row 2: label 9 is not",
    ),
    "more words than labels": (lambda p: {"label_words": ["bad", "dull", "great"]}, 3, r"3 label words .* 2 label"),
    "label words that collide": (
        lambda p: {"label_words": ["great", " great"]}, 3, r"'great' and .*great' have the same tokens \[",
    ),
    "label word out of the vocabulary": (lambda p: {"label_words": ["zzz", "bad"]}, 3, r"'zzz' is not in the vocab"),
    "masked word of two tokens": (
        lambda p: {"family": "bert", "template": MASK, "label_words": ["so bad", "great"]}, 3, r"'so bad'.*so.*bad",
    ),
    "masked without a mask": (lambda p: {"family": "bert", "template": "{{ text }}"}, 3, r"mask"),
    "empty train file": (lambda p: {"train": rows(p / "a.jsonl")}, 3, r"a\.jsonl"),
    "empty eval file": (lambda p: {"eval": rows(p / "a.jsonl")}, 3, r"a\.jsonl"),
    "template with a syntax error": (lambda p: {"template": "{{ text"}, 3, r"syntax error"),
    "unknown model": (lambda p: {"model": "no/such-model"}, 2, r"of 'no/such-model' cannot be loaded"),
    "missing model folder": (lambda p: {"model": p / "nowhere"}, 2, r"nowhere' cannot be loaded"),
    "unknown method": (lambda p: {"method": "mezzo"}, 2, r"unknown method 'mezzo'. The nearest is 'mezo'"),
    "method argument of another": (lambda p: {"rank": 2}, 2, r"'rank'. It is an argument of lozo, .*mezo takes beta1"),
    "bad method argument": (lambda p: {"method": "sparse_mezo", "sparsity": 1.5}, 2, r"sparsity must be in \[0, 1\)"),
    "unknown law": (lambda p: {"law": "cauchy"}, 2, r"law is 'cauchy'. Remedy: use 'rademacher' or 'gaussian'"),
    "rank that is a word": (lambda p: {"method": "lozo", "rank": "two"}, 2, r"rank is 'two'. Remedy: use a whole"),
    "rank that is true": (lambda p: {"method": "lozo", "rank": "true"}, 2, r"rank is True. Remedy: use a whole number"),
    "unknown norm": (lambda p: {"method": "lozo", "normalize": "x"}, 2, r"normalize is 'x'. Remedy: use 'none' or"),
    "batch and micro-batch": (lambda p: {"batch_size": 8, "micro_batch_size": 3}, 2, r"8 is not a multiple of .* 3"),
    "unknown scope": (lambda p: {"scope": "top:2"}, 2, r"unknown scope 'top:2'. Remedy: full, norms"),
    "scope of nothing": (lambda p: {"scope": "regex:nothing_here"}, 2, r"selects no trainable parameter"),
    "scope of too many blocks": (lambda p: {"scope": "last:9"}, 2, r"last:9, but .* has 3 blocks"),
    "no such LoRA target": (lambda p: {"scope": "lora", "lora_targets": "q"}, 2, r"LoRA cannot be added"),
    "negative lr": (lambda p: {"lr": "-1"}, 2, r"lr is"),
    "NaN as lr": (lambda p: {"lr": "nan"}, 2, r"lr is"),
    "unknown device": (lambda p: {"device": "cuda:77"}, 2, r"device 'cuda:77' cannot be used"),
    "steps that are no number": (lambda p: {"steps": "many"}, 2, r"steps is 'many'"),
    "masked language modelling": (
        lambda p: {"family": "bert", "label_words": None, "template": None}, 2, r"no language-model loss",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(cli: Any, line: Line, tmp_path: Path, name: str) -> None:
    """One line that names the thing and a remedy, its exit code, and the same folder is free for the next try."""
    import re

    make, code, message = BAD[name]
    before = sorted(path.name for path in tmp_path.iterdir())
    outcome = cli(*line(**make(tmp_path)))
    assert outcome.code == code, outcome.stderr
    said = [text for text in outcome.stderr.splitlines() if text.startswith("zotune: ")]
    assert len(said) == 1 and re.search(message, said[0]) and "Remedy: " in said[0], outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert " ".join(last(outcome)["error"].split()) == said[0].removeprefix("zotune: ")
    assert sorted({path.name for path in tmp_path.iterdir()} - {"run", "a.jsonl", "a.xml"}) == before
    again = cli(*line())
    assert again.code == 0, again.stderr


def test_unknown_key_in_the_file(cli: Any, line: Line, tmp_path: Path) -> None:
    """The nearest key is named, with file and line."""
    (tmp_path / "c.yaml").write_text("steps: 3\nbatchsize: 4\n")
    outcome = cli(*line(), "--config", tmp_path / "c.yaml")
    assert outcome.code == 2 and not (tmp_path / "run").exists()
    assert "c.yaml line 2: unknown option 'batchsize'. The nearest is 'batch_size'" in outcome.stderr


def _spoil(model: Path, to: Path, value: float) -> Path:
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, to)
    tensors = load_file(to / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = value
    save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    return to


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_loss_that_is_not_finite(cli: Any, line: Line, tiny: Any, tmp_path: Path, value: float) -> None:
    """A weight that is infinite or NaN: the step and the layer are named, nothing blocks the corrected command."""
    outcome = cli(*line(model=_spoil(tiny("llama"), tmp_path / "m", value)))
    assert outcome.code == 6 and "Traceback" not in outcome.stderr
    said = last(outcome)["error"]
    assert "the loss is nan at step 0" in said and "model.layers.1.mlp" in said and "Remedy: " in said
    assert cli(*line()).code == 0


def test_lanes_that_cannot_be(cli: Any, line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """lanes=on where an operation has no lane rule is refused with the reason; auto does it one by one."""
    from zotune import perturb

    monkeypatch.setattr(perturb, "RULES", {})
    outcome = cli(*line(lanes="on"))
    assert outcome.code == 2 and "lanes=on, but " in outcome.stderr and "Remedy: use lanes=auto" in outcome.stderr
    outcome = cli(*line(lanes="auto"))
    assert outcome.code == 0 and "one at a time (" in outcome.stderr


def test_folder_in_use(cli: Any, line: Line, tmp_path: Path) -> None:
    """A folder that a living process holds is left alone, by train and by resume; afterwards it is free."""
    run = tmp_path / "run"
    assert cli(*line()).code == 0
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with RunFolder.open(run):
        for words in (["resume", run], line()):
            outcome = cli(*words)
            assert outcome.code == 4 and "Remedy: " in outcome.stderr
        assert f"in use by process {os.getpid()}" in cli("resume", run).stderr
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert cli("resume", run).code == 0


def test_folder_that_holds_a_run(cli: Any, line: Line, tmp_path: Path) -> None:
    """A finished run is not written over."""
    assert cli(*line()).code == 0
    before = (tmp_path / "run" / "journal.zoj").read_bytes()
    outcome = cli(*line(seed=9))
    assert outcome.code == 4 and "holds a run already. Remedy: `zotune resume" in outcome.stderr
    assert (tmp_path / "run" / "journal.zoj").read_bytes() == before


def test_changed_run(cli: Any, line: Line, tmp_path: Path, tiny: Any) -> None:
    """Another base model, changed rows, another seed in config.yaml, a corrupt journal: one line and a code each."""
    run, train = tmp_path / "run", tmp_path / "train.jsonl"
    shutil.copy(line()[line().index("--train") + 1], train)
    assert cli(*line(train=train)).code == 0
    file, journal = run / "config.yaml", run / "journal.zoj"
    text, data, content = file.read_text(), journal.read_bytes(), train.read_bytes()

    def check(code: int, message: str, *commands: str) -> None:
        for command in commands:
            outcome = cli(command, run, "--json")
            assert outcome.code == code and message in last(outcome)["error"], (command, outcome)
            assert "Remedy: " in outcome.stderr

    other = _spoil(tiny("llama"), tmp_path / "m", 0.5)
    file.write_text(text.replace(str(tiny("llama")), str(other)))
    check(4, "base model's weights have changed", "resume")
    check(4, "not those the run began from", "replay", "eval")
    file.write_text(text.replace("\nseed: 0\n", "\nseed: 1\n"))
    check(4, "seed is 1 in config.yaml, the run began with 0", "resume")
    file.write_text(text)
    train.write_bytes(content + b'{"text": "so bad", "label": 0}\n')
    check(4, "the training rows have changed", "resume")
    train.write_bytes(content)
    journal.write_bytes(data[:-100] + bytes([data[-100] ^ 1]) + data[-99:])
    check(5, "byte ", "resume", "replay", "eval", "log")
    journal.write_bytes(data[:-7])
    outcome = cli("resume", run, "--json")
    assert outcome.code == 0 and "unfinished record" in outcome.stderr
    assert journal.read_bytes() == data


# --- the real process -------------------------------------------------------------------------------------------------


def test_help_is_quick() -> None:
    """`zotune --help` imports no torch, and nothing else that would be felt: 0.3 s of an idle machine is the goal."""
    heavy = ("torch", "transformers", "numpy", "pydantic", "jinja2", "yaml", "peft", "datasets")
    seen = f"[name for name in {heavy} if name in sys.modules]"
    program = f"import sys, zotune.cli as c\ntry: c.main(['--help'])\nfinally: print({seen})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "Usage: zotune" in done.stdout, done.stderr
    assert done.stdout.rstrip().endswith("[]"), done.stdout.splitlines()[-1]


def test_stdout_of_the_real_process(line: Line) -> None:
    """A process of its own: stdout is exactly one line, progress is plain lines on stderr, exit code 0."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "zotune", *line()]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1 and json.loads(done.stdout)["steps"] == 4
    assert "step 4/4  loss" in done.stderr and "\r" not in done.stderr and "\x1b" not in done.stderr
    assert "Warning" not in done.stderr, done.stderr
