"""Parts of the scope by step, for every method: which, how often, and that the rest keeps its bits."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests import models
from tests.models import Weights, batch_for, loss, same_bits, tiny, train, weights
from torch import nn

from zotune import lane_rules
from zotune.errors import ConfigError
from zotune.methods import METHODS
from zotune.noise import Key
from zotune.rebuild import rebuild
from zotune.records import StepRecord
from zotune.schedule import Scheduled

one_thread = models.one_thread
methods = pytest.mark.parametrize("method", models.METHOD_ROWS)
FIRST, SECOND = "model.layers.0.", "model.layers.1."


def part_of(name: str) -> int:
    """0 and 1 for the blocks of the tiny llama, 2 for what lies outside them."""
    return 0 if name.startswith(FIRST) else 1 if name.startswith(SECOND) else 2


@methods
def test_one_part_after_the_other(method: str) -> None:
    """Block 0, block 1, the rest, block 0, ...: nothing else changes a bit, and something of the part does."""
    model, batch = tiny("llama"), batch_for("llama")
    optimizer = train(method, model, lr=0.1, blocks="cycle")
    for step in range(7):
        before = weights(model)
        optimizer.step(loss, batch)
        after = weights(model)
        moved = {part_of(name) for name in optimizer.names if not same_bits({"": before[name]}, {"": after[name]})}
        assert moved == {step % 3} or (method == "curvzo" and not moved), (step, moved)
    assert optimizer.evaluator.mode == "lanes" or len(optimizer.estimator.points(0, 0)) == 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_what_rests_is_left_alone(method: str, weight_decay: float) -> None:
    """But for weight decay, which is its group's: theta (1 - lr wd) of the bits before; what is kept of it stays.

    Momentum on, where the method has it; a state saved in the middle of a cycle goes on to the same bits.
    """
    more = {"loren": {"momentum": 0.9}, "subzero": {"adam": True}, "mezo": {"moments": "momentum"}}.get(method, {})
    lr, batch = 1e-2, batch_for("llama")
    model, other = tiny("llama", torch.float64), tiny("llama", torch.float64)
    options = {"lr": lr, "blocks": "cycle", "weight_decay": weight_decay, **more}
    optimizer = train(method, model, **options)
    decays = {name: group["weight_decay"] for group in optimizer.param_groups for name in group["names"]}
    for step in range(5):
        before, kept = weights(model), optimizer.carried()
        optimizer.step(loss, batch)
        after, now = weights(model), optimizer.carried()
        for name in (name for name in optimizer.names if part_of(name) != step % 3):
            expected = before[name] * (1 - lr * decays[name]) if decays[name] else before[name]
            assert same_bits({"": after[name]}, {"": expected}), (step, name)
            # A basis is that of the inputs, which all layers show in every step.
            for key in (key for key in kept if name in key and not optimizer.direction.reads_inputs):
                assert same_bits({"": now[key]}, {"": kept[key]}), (step, key)
        if step == 2:
            state = copy.deepcopy(optimizer.state_dict())
            other.load_state_dict(model.state_dict())
    continued = train(method, other, **options)
    continued.load_state_dict(state)
    for _ in range(2):
        continued.step(loss, batch)
    assert same_bits(weights(other), weights(model))


@pytest.mark.parametrize("method", ["lozo", "lozo_m", "subzero"])
@pytest.mark.parametrize("steps", [1, 3, 4])
def test_a_sum_that_waits_for_a_part_at_rest_travels(method: str, steps: int) -> None:
    """Changes of a part that rested in the last step are not folded yet when a state is saved."""
    model, other, batch = tiny("llama"), tiny("llama"), batch_for("llama")
    options: dict[str, Any] = {"lr": 1e-2, "blocks": "cycle", "fold_every": 10, "interval": 10}
    optimizer = train(method, model, **options)
    for _ in range(steps):
        optimizer.step(loss, batch)
    other.load_state_dict(model.state_dict())
    continued = train(method, other, **options)
    continued.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each in (optimizer, continued):
        for _ in range(3):
            each.step(loss, batch)
        each.fold()
    assert same_bits(weights(other), weights(model))


def test_a_share_is_drawn_anew_for_each_step() -> None:
    """random:0.4 of eleven parts is four, each as often as the others: 3,000 steps, 4.5 standard errors."""
    model = Deep()
    optimizer = train("mezo", model, blocks="random:0.4")
    direction = optimizer.direction
    third = train("mezo", Deep(), blocks="random:0.33").direction
    assert isinstance(third, Scheduled) and len(third.chosen(Key(5, 0))) == 4  # 3.63 parts, rounded
    assert isinstance(direction, Scheduled) and direction.count == 11
    counts, trials = torch.zeros(11), 3000
    for step in range(trials):
        chosen = direction.chosen(Key(5, step))
        assert len(chosen) == 4 and direction.chosen(Key(5, step, 3)) == chosen
        counts[list(chosen)] += 1
    p = 4 / 11
    assert float((counts / trials - p).abs().max()) < 4.5 * (p * (1 - p) / trials) ** 0.5
    assert direction.chosen(Key(6, 0)) != direction.chosen(Key(5, 0))


class Deep(nn.Module):
    """Ten blocks, and a head that the model lists before them."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)
        self.layers = nn.ModuleList([nn.Linear(3, 3) for _ in range(10)])


def test_what_lies_outside_the_blocks_comes_last() -> None:
    """Blocks count from 0 in their own order, whatever the model lists first; tensors of a block go together."""
    direction = train("mezo", Deep(), blocks="cycle").direction
    assert isinstance(direction, Scheduled)
    assert {direction.parts[f"layers.{i}.{kind}"] for i in (3,) for kind in ("weight", "bias")} == {3}
    assert direction.parts["head.weight"] == direction.parts["head.bias"] == 10


@pytest.mark.parametrize("lanes", ["auto", "off"])
@pytest.mark.parametrize("blocks", ["cycle", "random:0.34"])
def test_lanes_are_proven_once(blocks: str, lanes: Any) -> None:
    """After the first step no part costs more forwards than its points, two of them in one."""
    model, seen = tiny("llama"), []
    optimizer = train("lozo", model, blocks=blocks, lanes=lanes)
    optimizer.step(loss, batch_for("llama"))
    model.register_forward_hook(lambda module, args, output: seen.append(len(output.logits)))
    for _ in range(6):
        optimizer.step(loss, batch_for("llama"))
    assert seen == ([6] * 6 if lanes == "auto" else [3] * 12)


def test_a_wrong_rule_of_a_part_at_rest_is_caught_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table rests in step 0, yet a rule that swaps its lanes is found by the first proof."""
    right = lane_rules.RULES[torch.nn.functional.embedding]

    def swapped(lanes: Any, func: Any, args: Any, kwargs: Any) -> Any:
        result = right(lanes, func, args, kwargs)
        return result if lanes.count == 1 else torch.cat([*reversed(result.chunk(lanes.count))])

    monkeypatch.setitem(lane_rules.RULES, torch.nn.functional.embedding, swapped)
    optimizer = train("mezo", tiny("llama"), blocks="cycle")
    optimizer.estimate(loss, batch_for("llama"))
    assert optimizer.evaluator.mode == "sequential"
    assert "lanes differ from single evaluations" in optimizer.evaluator.reason


@methods
def test_a_journal_knows_the_parts(method: str) -> None:
    """The header rebuilds the same schedule; where a method can be replayed, the same bits."""
    model, base = tiny("llama"), tiny("llama")
    optimizer, records = train(method, model, lr=0.1, seed=3, blocks="random:0.34"), list[StepRecord]()
    optimizer.record = records.append
    for _ in range(4):
        optimizer.step(loss, batch_for("llama"))
    other = rebuild(optimizer.header(), base)
    assert isinstance(other.direction, Scheduled) and other.direction.choice == "random:0.34"
    assert other.direction.reads_inputs == (not METHODS[method].replayable)
    if METHODS[method].replayable:
        for record in records:
            other.replay(record)
        assert same_bits(weights(base), weights(model))


@pytest.mark.parametrize(
    "wrong", ["", "cyclic", "random", "random:", "random:0", "random:1.5", "random:nan", "cycle:2"]
)
def test_an_unknown_choice_is_refused(wrong: str) -> None:
    """With those that there are."""
    with pytest.raises(ConfigError, match="Remedy: cycle, random:SHARE"):
        train("mezo", tiny("llama"), blocks=wrong)


def test_a_scope_of_one_part_is_refused() -> None:
    """Nothing could be left out: a model without blocks, or a scope inside one of them."""
    for model, scope in ((Weights(w=torch.zeros(3)), "full"), (tiny("llama"), f"regex:{FIRST}")):
        with pytest.raises(ConfigError, match="one part of the model. Remedy"):
            train("mezo", model, scope=scope, blocks="cycle")
