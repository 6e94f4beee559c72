"""What a run works with, made from its config, and what may not change under it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import zotune
from zotune.config import PLACES, TrainConfig
from zotune.data.batching import units_of_step
from zotune.errors import ConfigError, DataError, RunError
from zotune.objective.from_config import given_functions
from zotune.resolve import config_of
from zotune.run import RunPaths
from zotune.session import Session, check_same

Config = Callable[..., TrainConfig]


@pytest.mark.parametrize(
    ("options", "depth"),
    [
        ({"scope": "last:1"}, 2),
        ({"scope": "norms&last:2"}, 1),
        ({"scope": "full"}, 0),
        ({"scope": "last:1", "reuse_mb": 0}, 0),
        ({"scope": "lora&last:1"}, 2),
        ({"family": "bert", "scope": "biases&last:2"}, 1),
        ({"family": "deep", "scope": "last:1"}, 7),
        ({"family": "gpt2", "scope": "last:1"}, 1),
        ({"family": "t5", "scope": "last:1"}, 1),
    ],
)
def test_blocks_below_the_scope_are_reused(config: Config, options: dict[str, Any], depth: int) -> None:
    """The runs that other tests resume do skip the blocks they should, in lanes, and without a change of the loss."""
    session = Session(config(**options)).begin()
    assert session.reuse.depth == depth and bool(session.reuse.reason) == (depth == 0)
    assert session.optimizer.evaluator.mode == "lanes", session.optimizer.evaluator.reason
    batch = session.batch(session.units[0])
    points = session.optimizer.estimator.points(4, 0)
    losses = session.optimizer.evaluator.losses
    with_reuse = losses(session.objective, batch, points, session.reuse.within(session.objective, batch, 0))
    # bfloat16 aside, the loss of a batch is the same whether its lower blocks ran or not.
    assert torch.equal(with_reuse, losses(session.objective, batch, points))


@pytest.mark.parametrize("options", [{}, {"temperature": 0.8, "lanes": "off"}, {"scope": "lora&last:1"}])
def test_prompts_are_read_once_below_the_scope(config: Config, options: dict[str, Any]) -> None:
    """Of a run that trains on what the model says: the same losses, and evaluations keep nothing for themselves."""

    def checksum(completions: list[str]) -> list[float]:
        return [sum(map(ord, each)) % 97 for each in completions]

    functions = given_functions(checksum)
    said = {"label_words": None, "template": None, "max_new_tokens": 4, "reward": [functions.reward[0].name]}
    session = Session(config(**{"scope": "last:1", **said, **options}), functions=functions).begin()
    assert session.reuse.depth == 2
    batch = session.batch(session.units[0])
    points = session.optimizer.estimator.points(4, 0)
    losses = session.optimizer.evaluator.losses
    with_reuse = losses(session.objective, batch, points, session.reuse.within(session.objective, batch, 0))
    assert torch.equal(with_reuse, losses(session.objective, batch, points)) and len(set(with_reuse[0].tolist())) > 1
    kept = session.reuse.kept_bytes
    session.evaluate()
    assert session.reuse.kept_bytes == kept > 0


@pytest.mark.parametrize("scope", ["last:1", "full"])
def test_short_unit(config: Config, scope: str) -> None:
    """The last unit holds the one row that is left over; its step sums five examples, in lanes as one by one."""
    rows: dict[str, list[float]] = {}
    for lanes in ("on", "off"):
        session = Session(config(scope=scope, micro_batch_size=4, batch_size=8, lanes=lanes, steps=3)).begin()
        assert sorted(map(len, session.units)) == [2, 4, 4, 4, 4, 4]
        short = [len(unit) for unit in session.units].index(2)
        step = next(s for s in range(99) if short in units_of_step(6, 2, 4, s))
        session.optimizer.steps = step
        session.step()
        rows[lanes] = [float(loss) for loss in session.optimizer.probes[0].losses]
    assert rows["on"] == pytest.approx(rows["off"], rel=1e-5)


def test_evaluation_is_the_same_with_reuse(config: Config) -> None:
    """Held-out rows give the same loss before `begin` (nothing is reused), with cold and with warm activations."""
    session = Session(config(scope="last:1"))
    plain = session.evaluate()
    session.begin()
    assert plain == session.evaluate() == session.evaluate()
    assert session.reuse.kept_bytes > 0
    assert Session(config(eval=None)).evaluate() is None


@pytest.mark.parametrize(
    ("kind", "warmup", "expected"),
    [
        ("constant", 0, lambda t: 1.0),
        ("constant", 4, lambda t: min(1.0, t / 4)),
        ("linear", 4, lambda t: t / 4 if t < 4 else (20 - t) / 16),
        ("cosine", 4, lambda t: t / 4 if t < 4 else (1 + math.cos(math.pi * (t - 4) / 16)) / 2),
    ],
)
def test_learning_rates(config: Config, kind: str, warmup: int, expected: Callable[[int], float]) -> None:
    """The rate is a function of the step, for both parameter groups; asking twice or backwards changes nothing."""
    session = Session(config(lr_schedule=kind, warmup_steps=warmup, steps=20, lr=0.5, weight_decay=0.1)).begin()
    assert len(session.optimizer.param_groups) == 2
    for t in (3, 0, 19, 4, 3):
        assert session._lr(t) == pytest.approx([0.5 * expected(t)] * 2)
    session.optimizer.steps = 7
    seen: list[Any] = []
    session.optimizer.record = seen.append
    session.step()
    assert seen[0].lrs == tuple(session._lr(7))


def test_header_says_what_a_replay_needs(config: Config) -> None:
    """The journal's header is JSON and names base, data, course, method, stream and versions."""
    session = Session(config(method="lozo", method_args={"rank": 3}, queries=2, scope="last:1")).begin()
    header = json.loads(json.dumps(session.header()))
    assert header["zotune"] == zotune.__version__ and header["torch"] == torch.__version__
    assert header["method"] == "lozo" and header["arguments"]["rank"] == 3 and header["arguments"]["queries"] == 2
    assert header["seed"] == 4 and header["stream"]["version"] >= 1
    assert len({header[key] for key in ("base_sha256", "train_sha256", "eval_sha256", "scope_sha256")}) == 4
    assert not set(PLACES) & set(header["config"]) and header["config"]["lr"] == 1e-2


def test_directions_per_step_are_the_methods_unless_given(config: Config) -> None:
    """Without queries a method's own default holds, and with them they do."""
    for method, given, expected in (("zo_muon", {}, 4), ("zo_muon", {"queries": 2}, 2), ("mezo", {"queries": 1}, 1)):
        optimizer = Session(config(method=method, scope="last:1", **given)).begin().optimizer
        assert optimizer.arguments["queries"] == expected


def test_unknown_method(config: Config) -> None:
    """A method that is not in the table is refused before anything is loaded."""
    with pytest.raises(ConfigError, match="unknown method 'adam'. Remedy: one of mezo"):
        Session(config(method="adam", model="nowhere"))


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        (
            "intervall",
            "unknown option 'intervall'. The nearest is 'interval'. Remedy: .*the method lozo takes interval, ",
        ),
        ("queries", "queries is an option of its own. Remedy: take it out of method_args"),
    ],
)
def test_unknown_arguments_of_a_method(config: Config, argument: str, said: str) -> None:
    """Given in Python they are refused as on the command line, before a model is looked for."""
    with pytest.raises(ConfigError, match=said):
        Session(config(method="lozo", method_args={argument: 2}, model="nowhere"))


@pytest.mark.parametrize("name", ["train", "eval"])
def test_bad_rows_are_named_with_their_file(config: Config, tmp_path: Path, name: str) -> None:
    """The message about a row says which file it is in."""
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a film", "label": 0}\n{"text": "bad", "label": 7}\n{"text": "fine"}\n')
    with pytest.raises(DataError, match=r"rows.jsonl: Row 3 has no column 'label'; columns found: text\."):
        Session(config(**{name: path}))


def test_config_of(config: Config, tmp_path: Path) -> None:
    """A run's config.yaml gives its config back, in the folder where it lies now, and never allows foreign code."""
    begun = config(trust_remote_code=True, method="lozo", method_args={"rank": 3})
    (tmp_path / "moved").mkdir()
    paths = RunPaths(tmp_path / "moved")
    paths.config.write_text(begun.to_yaml())
    found = config_of(paths)
    assert found.course() == begun.course() and found.output_dir == tmp_path / "moved"
    assert not found.trust_remote_code and config_of(paths, trust_remote_code=True).trust_remote_code
    paths.config.write_text(begun.to_yaml() + "trust_remote_code: true\n")
    with pytest.raises(ConfigError, match="trust_remote_code cannot be set by a file"):
        config_of(paths, trust_remote_code=True)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("base_sha256", "the base model's weights have changed"),
        ("train_sha256", "the training rows have changed"),
        ("eval_sha256", "the held-out rows have changed"),
        ("scope_sha256", "the initial weights in scope have changed"),
        ("stream", "this version draws another noise stream"),
        ("seed", "seed: 4 for 'else'"),
        ("method", "method: 'mezo' for 'else'"),
        ("arguments", "arguments: "),
        ("fold_every", "fold_every: 1 for 'else'"),
        ("blocks", "blocks: None for 'else'"),
        ("parameters", "parameters: "),
        ("groups", "groups: "),
    ],
)
def test_check_same(config: Config, tmp_path: Path, key: str, said: str) -> None:
    """Each part of the header that differs is refused by its name; equal ones, and ones an older run lacks, pass."""
    now = Session(config()).begin().header()
    check_same(json.loads(json.dumps(now)), now, RunPaths(tmp_path))
    check_same({name: value for name, value in now.items() if name != key}, now, RunPaths(tmp_path))
    with pytest.raises(RunError, match=f"cannot continue: {said}.*since the run began.*[.] Remedy:"):
        check_same({**now, key: "else"}, now, RunPaths(tmp_path))
    with pytest.raises(RunError, match="steps is 7 in config.yaml, the run began with 8"):
        check_same({**now, "config": {**now["config"], "steps": 8}}, now, RunPaths(tmp_path))
    check_same({**now, "config": {"an_option_of_the_past": 1}}, now, RunPaths(tmp_path))
