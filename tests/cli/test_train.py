"""`zotune train`: flags and files become one config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest

from zotune.cli.options import METHOD_FLAGS
from zotune.config import OPTIONS, TrainConfig
from zotune.option import flag, hints
from zotune.watch import Console

BASE = ["--model", "m", "--train", "t.jsonl", "--output-dir", "out"]
GIVEN = {
    "model": "org/name", "train": "a.jsonl", "eval": "b.jsonl", "output_dir": "out", "text_column": "x",
    "data_format": "label",
    "label_column": "y", "template": "{{ x }} It was", "label_words": "terrible,great", "labels": "0,1",
    "method": "lozo", "lr": "1e-6", "eps": "1e-3", "tuned": "1e-06 for lozo, norms", "queries": "2",
    "weight_decay": "0.1",
    "scope": "sensitive&last:2", "lora_rank": "4", "lora_alpha": "8", "lora_targets": "q,v", "steps": "200",
    "prefix_tokens": "3",
    "batch_size": "16", "micro_batch_size": "8", "seed": "7", "dtype": "bfloat16", "device": "cpu",
    "lr_schedule": "linear", "blocks": "cycle", "fold_every": "2",
    "warmup_steps": "3", "lanes": "off", "graphs": "off", "reuse_mb": "0", "max_length": "64", "eval_every": "10",
    "eval_batch_size": "4", "rows_per_forward": "2", "snapshot_every": "5", "threads": "1", "on_nonfinite": "skip",
    "parallel": "data+probes", "check_every": "50", "offload": "disk",
    "quantize": "int8", "sensitive": "mask.safetensors", "bank_rank": "32", "scorer": "vllm",
}  # fmt: skip

TASK = {
    "task": "sst2", "data_dir": "rows", "data_seed": "13", "shots": "16", "train_rows": "32", "eval_rows": "50",
    "eval_split": "dev",
}  # fmt: skip

REWARDED = {
    "reward": "r.py:one,f1", "reward_weights": "1,0.5", "reward_timeout": "5", "max_new_tokens": "8",
    "temperature": "0.7", "stop": "\\n,END",
}  # fmt: skip
ALONE = ({"objective": "accuracy"}, {"metric": "m.py:bleu"}, {"device_map": "balanced"})


def test_every_option_has_its_flag(cli: Any, fakes: Any) -> None:
    """Each option given as a flag arrives in the config; those of tasks have a test of their own."""
    assert set(GIVEN) | set(TASK) | set(REWARDED) | {"objective", "metric", "calibrated", "device_map"} == set(
        OPTIONS
    ) - {
        "completion_column",
        "method_args",
        "scorer_args",
        "track",  # opens trackers: tests/test_track.py
        "trust_remote_code",
        "allow_task_code",
    }
    flags = [word for name, value in GIVEN.items() for word in (flag(name), value)]
    arguments = ["--method-arg", "interval=50", "--scorer-arg", "max_num_seqs=64", "--scorer-arg", "enforce_eager=true"]
    outcome = cli("train", *flags, "--rank", "2", *arguments, "--trust-remote-code")
    assert outcome.code == 0, outcome.stderr
    (config, watch), _ = next(call[1:] for call in fakes.calls if call[0] == "train")
    values: dict[str, Any] = GIVEN | {
        "label_words": ["terrible", "great"], "labels": [0, 1], "lora_targets": ["q", "v"]
    }  # fmt: skip
    expected = TrainConfig(
        **values,
        method_args={"rank": 2, "interval": 50},
        trust_remote_code=True,
        scorer_args={"max_num_seqs": 64, "enforce_eager": True},
    ).absolute()
    assert config == expected and isinstance(watch, Console)
    assert config.train.is_absolute() and config.output_dir.is_absolute()


def test_every_option_of_a_task_has_its_flag(cli: Any, fakes: Any) -> None:
    """A task in place of a file, with its own options."""
    flags = [word for name, value in TASK.items() for word in (flag(name), value)]
    outcome = cli("train", "--model", "m", "--output-dir", "out", *flags, "--calibrated")
    assert outcome.code == 0, outcome.stderr
    (config, _), _ = next(call[1:] for call in fakes.calls if call[0] == "train")
    values: dict[str, Any] = TASK
    preset = {"lr": 1e-6, "eps": 1e-3}
    assert config == TrainConfig(model="m", output_dir=Path("out"), calibrated=True, **preset, **values).absolute()
    assert (config.train, config.shots, config.calibrated) == (None, 16, True) and config.data_dir.is_absolute()


@pytest.mark.parametrize("given", [REWARDED, *ALONE], ids=lambda given: next(iter(given)))
def test_every_option_of_a_score_has_its_flag(cli: Any, fakes: Any, given: dict[str, str]) -> None:
    """Functions by name, numbers as numbers, files with their whole path; a written line end is one."""
    flags = [word for name, value in given.items() for word in (flag(name), value)]
    outcome = cli("train", *BASE, *flags)
    assert outcome.code == 0, outcome.stderr
    (config, _), _ = next(call[1:] for call in fakes.calls if call[0] == "train")
    if given is REWARDED:
        assert config.reward == [f"{Path('r.py').resolve()}:one", "f1"] and config.reward_weights == [1.0, 0.5]
        assert (config.reward_timeout, config.max_new_tokens, config.temperature) == (5.0, 8, 0.7)
        assert config.stop == ["\n", "END"]
        assert config.course()["reward"] == ["r.py:one", "f1"]
    else:
        assert config.objective == given.get("objective")
        assert config.metric == (f"{Path('m.py').resolve()}:bleu" if "metric" in given else None)


def test_help_lists_every_flag_and_choice(cli: Any) -> None:
    """The help names each option once, with the values of a choice."""
    text = cli("train", "--help").stdout
    for name in {*OPTIONS, *METHOD_FLAGS} - {"method_args", "scorer_args"}:
        assert text.count(f"  {flag(name)} ") == 1, name
    assert "--method-arg NAME=VALUE" in text and "--scorer-arg NAME=VALUE" in text and "--config FILE" in text
    for name in OPTIONS:
        kind = hints(TrainConfig)[name].__origin__
        if get_origin(kind) is Literal:
            assert "|".join(get_args(kind)) in text


def test_file_then_flags(cli: Any, fakes: Any, tmp_path: Path) -> None:
    """The file gives values, flags replace them, and a run's own config works as a file."""
    first = TrainConfig(
        model="m", train=Path("t"), output_dir=Path("out"), method="lozo", method_args={"rank": 4}, lr=1e-7
    )
    path = tmp_path / "config.yaml"
    path.write_text(first.to_yaml())
    assert cli("train", "--config", path, "--output-dir", tmp_path / "other", "--lr", "0.5").code == 0
    (config, _), _ = next(call[1:] for call in fakes.calls if call[0] == "train")
    assert (config.lr, config.method_args, config.output_dir) == (0.5, {"rank": 4}, tmp_path / "other")


def test_result(cli: Any, fakes: Any) -> None:
    """What train returns is what --json prints."""
    fakes.results["train"] = {
        "steps": 2, "weights_sha256": "ab", "journal_bytes": 99, "seconds": 0.5, "accuracy_before": 0.5,
        "accuracy_after": 0.75,
    }  # fmt: skip
    assert json.loads(cli("train", *BASE, "--json").stdout) == fakes.results["train"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "model is missing. Remedy: give --model"),
        (["--model", "m"], "train is missing. Remedy: give --train"),
        ([*BASE, "--steps", "many"], "steps is 'many'"),
        ([*BASE, "--dtype", "int8"], "dtype is 'int8'"),
        ([*BASE, "--rank", "2"], "unknown option 'rank'.* the method mezo takes law"),
        (
            [*BASE, "--method", "lozo", "--method-arg", "rnak=2"],
            "unknown option 'rnak'. The nearest is 'rank'",
        ),
        ([*BASE, "--method", "mezzo"], "unknown method 'mezzo'. The nearest is 'mezo'"),
        ([*BASE, "--config", "none.yaml"], "none.yaml cannot be read"),
    ],
)
def test_errors_come_before_any_work(cli: Any, fakes: Any, arguments: list[str], message: str) -> None:
    """A wrong config is one line with exit code 2, and training is not called."""
    outcome = cli("train", *arguments)
    assert outcome.code == 2 and outcome.stdout == ""
    assert outcome.stderr.count("\n") == 1
    import re

    assert re.search(message, outcome.stderr), outcome.stderr
    assert "train" not in [call[0] for call in fakes.calls]
