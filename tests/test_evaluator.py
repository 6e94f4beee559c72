"""Several points at once: the self-check, later batches, scalars, memory, label words."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from tests import models
from tests.gpu import GPU, Copies
from tests.models import (
    against_copies,
    batch_for,
    displaced,
    inputs,
    loss,
    seeded,
    squares,
    takes_closures,
    tiny,
    train,
)
from tests.objective.conftest import build, byte_level, word_level
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from zotune import lane_rules
from zotune.data.template import Template
from zotune.direction import Dense
from zotune.errors import ConfigError, RunError, UserError
from zotune.estimate import Point
from zotune.evaluator import Evaluator, Seen, fetched
from zotune.lazy import Lanes
from zotune.noise import Key
from zotune.objective.label_words import LabelWords
from zotune.scorer import nothing

one_thread = models.one_thread
methods = pytest.mark.parametrize("method", models.METHOD_ROWS)


class Shuffling(nn.Module):
    """Swaps the halves of its batch between two layers: right alone, wrong in two lanes, and no operation refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.one(x)
        if len(hidden) > 3:
            hidden = hidden.roll(3, 0)
        return self.two(hidden)


@methods
def test_a_model_that_mixes_examples_is_caught(method: str) -> None:
    """The first batch proves the lanes wrong: the losses are those of single evaluations, and the reason says so."""
    model = seeded(Shuffling)
    optimizer = train(method, model, eps=1e-3)
    against_copies(optimizer, squares, inputs(3, 4))
    assert optimizer.evaluator.mode == "sequential"
    assert "lanes differ from single evaluations" in optimizer.evaluator.reason


@methods
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("operation", ["linear", "embedding"])
def test_a_planted_wrong_rule_is_caught(
    method: str, dtype: torch.dtype, operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rule that gives lane 0 the weights of lane 1 cannot pass the self-check, however small the radius."""
    func = {"linear": torch.nn.functional.linear, "embedding": torch.nn.functional.embedding}[operation]
    right = lane_rules.RULES[func]

    def swapped(lanes: Any, func: Any, args: Any, kwargs: Any) -> Any:
        result = right(lanes, func, args, kwargs)
        return result if lanes.count == 1 else torch.cat([*reversed(result.chunk(lanes.count))])

    monkeypatch.setitem(lane_rules.RULES, func, swapped)
    for eps in (1e-2, 1e-4, 1e-6):
        model = tiny("llama", dtype)
        # A method may draw its radius: asked for in proportion, the points lie eps away all the same.
        largest = max(abs(point.scale) for point in train(method, model, eps=1.0).estimator.points(0, 0))
        optimizer = train(method, model, eps=eps / largest)
        optimizer.estimate(loss, batch_for("llama"))
        assert optimizer.evaluator.mode == "sequential", eps
    with pytest.raises(UserError, match="lanes=on, but lanes differ"):
        train(method, model, lanes="on").estimate(loss, batch_for("llama"))


def test_lanes_that_were_asked_for_are_an_error_where_they_cannot_be() -> None:
    """lanes="on" with a mixture of experts names the operation and the parameter; "off" gives its own reason."""
    with pytest.raises(UserError, match="lanes=on, but .*experts.*Remedy: use lanes=auto"):
        train("mezo", tiny("qwen3_moe"), lanes="on").estimate(loss, batch_for("qwen3_moe"))
    assert train("mezo", tiny("llama"), lanes="off").evaluator.reason == "lanes=off was asked for"


@methods
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5"])
def test_later_batches_of_any_size_are_right(method: str, family: str) -> None:
    """Lanes proven on 3 examples: batches of 1, 2, 6 and 7, and 4 points in one forward, equal explicit copies."""
    model = tiny(family, torch.float64)
    for options in ({}, {"queries": 2, "max_lanes": 4}):
        optimizer = train(method, model, **options)
        for rows in (3, 1, 2, 6, 7):
            against_copies(optimizer, loss, batch_for(family, rows=rows, seed=rows), 1e-13)
        assert optimizer.evaluator.mode == "lanes"


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_the_centre_and_one_point_ride_together(family: str) -> None:
    """A forward difference along one direction takes one forward of two lanes, equal to explicit copies."""
    optimizer = train("mezo", tiny(family, torch.float64))
    points = [Point(Key(0, 0), 0.0), Point(Key(0, 0), 1e-2)]
    seen: list[int] = []
    optimizer.evaluator.decide(loss, batch_for(family), points)
    optimizer.model.register_forward_hook(lambda module, args, output: seen.append(len(output.logits)))
    losses = optimizer.evaluator.losses(loss, batch_for(family), points)
    assert optimizer.evaluator.mode == "lanes" and seen == [6]
    with torch.no_grad():
        copies = torch.stack([loss(displaced(optimizer, point), batch_for(family)) for point in points])
    torch.testing.assert_close(losses, copies, rtol=0, atol=1e-13)


class Moody(nn.Module):
    """Stacks its activations in another way when the sequence is long, in a way no rule refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] > 5:
            return self.layer(x.transpose(0, 1).contiguous()).transpose(0, 1) * 1 + torch.zeros_like(self.layer.bias)
        return self.layer(x)


def test_a_later_batch_that_takes_another_path_is_evaluated_one_by_one(caplog: pytest.LogCaptureFixture) -> None:
    """The proven forward's trace differs: this batch alone goes point by point, the next rides in lanes again."""
    optimizer = train("mezo", seeded(Moody))
    optimizer.evaluator.losses(squares, inputs(3, 5, 4), optimizer.estimator.points(0, 0))
    assert optimizer.evaluator.mode == "lanes"
    with caplog.at_level(logging.INFO, logger="zotune.evaluator"):
        against_copies(optimizer, squares, inputs(3, 6, 4))
    assert "one batch evaluated point by point" in caplog.text
    assert optimizer.evaluator.mode == "lanes"
    caplog.clear()
    against_copies(optimizer, squares, inputs(3, 5, 4, seed=9))
    assert not caplog.messages


def test_processes_in_step_take_no_other_path() -> None:
    """Where others, at other batches, run forwards side by side, another path or number of forwards is an error."""
    optimizer = train("mezo", seeded(Moody))
    evaluator = Evaluator(optimizer.perturber, in_step=True)
    points = optimizer.estimator.points(0, 0)
    expected = evaluator.losses(squares, inputs(3, 5, 4), points)
    assert evaluator.mode == "lanes" and torch.equal(evaluator.losses(squares, inputs(3, 5, 4), points), expected)
    with pytest.raises(RunError, match="evaluated as the first one was .* Remedy: lanes=off, or parallel 'shard'"):
        evaluator.losses(squares, inputs(3, 6, 4), points)

    def several(model: nn.Module, batch: Any) -> Tensor:
        return squares(model, batch)

    several.one_forward = False  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="more forwards than others.* Remedy: parallel 'shard'"):
        evaluator.losses(several, inputs(3, 5, 4), points)


@methods
def test_scalar_losses_and_bare_batches_are_evaluated_one_by_one(method: str) -> None:
    """A scalar objective, a list for a batch and tensors of unequal length have no lanes; their losses are right."""
    model = seeded(lambda: nn.Linear(4, 4))
    cases: list[tuple[Any, Any, str]] = [
        (lambda m, b: squares(m, b).mean(), inputs(3, 4), "not one for each example"),
        (lambda m, b: squares(m, {"x": b[0]}), [inputs(3, 4)["x"]], "not a mapping"),
        (squares, {**inputs(3, 4), "other": torch.zeros(5)}, "not a mapping of tensors that share"),
    ]
    for objective, batch, reason in cases:
        optimizer = train(method, model)
        if not takes_closures(method):
            with pytest.raises(UserError, match="each of the batch's 3 examples|tensors that share their first"):
                optimizer.evaluator.losses(objective, batch, optimizer.estimator.points(0, 0))
            continue
        against_copies(optimizer, objective, batch)
        assert optimizer.evaluator.mode == "sequential" and reason in optimizer.evaluator.reason


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("full"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
    ],
)
def test_a_fault_is_not_taken_for_a_missing_rule(error: RuntimeError) -> None:
    """The error reaches the caller instead of a silent fall back to more, smaller forwards."""

    def fails(model: nn.Module, batch: Any) -> Tensor:
        raise error

    optimizer = train("mezo", seeded(lambda: nn.Linear(4, 4)))
    with pytest.raises(type(error), match=str(error)[:20]):
        optimizer.estimate(fails, inputs(3, 4))


def test_deciding_beforehand_is_deciding_alike() -> None:
    """A resumed run asks `decide` with the first batch: same mode, nothing counted, later forwards undisturbed."""
    model, batch = tiny("llama"), batch_for("llama")
    optimizer = train("mezo", model)
    points = optimizer.estimator.points(0, 0)
    optimizer.evaluator.decide(loss, batch, points)
    assert (optimizer.evaluator.mode, optimizer.evaluator.forwards) == ("lanes", 0)
    found = optimizer.evaluator.losses(loss, batch, points)
    other = train("mezo", model)
    assert torch.equal(other.evaluator.losses(loss, batch, points), found)
    assert isinstance(other.evaluator, Evaluator) and other.evaluator.forwards == optimizer.evaluator.forwards == 2


# --- label words -----------------------------------------------------------------------------------------------------

TEXTS = ["a warm and funny film that made me smile", "the plot is a mess and it was", "fine"]
TOKENIZERS: dict[str, PreTrainedTokenizerFast] = {
    "gpt2": byte_level([], []),
    "opt": byte_level(["</s>"], []),
    "t5": word_level([], ["[SEP]"]),
}


@methods
@pytest.mark.parametrize(
    ("family", "words"),
    [
        ("gpt2", ["terrible", "great"]),
        ("gpt2", ["terrible", "so bad"]),
        ("opt", ["terrible", "so bad"]),
        ("t5", ["terrible", "great"]),
        ("t5", ["terrible", "so bad"]),
    ],
)
def test_candidates_of_one_and_several_tokens(method: str, family: str, words: list[str]) -> None:
    """Three prompts of different lengths through LabelWords: losses equal explicit copies, and they ride in lanes."""
    tokenizer = TOKENIZERS[family]
    model = seeded(lambda: build(family, len(tokenizer)), 3).double().eval()
    kind: Any = "seq2seq" if family == "t5" else "causal"
    objective = LabelWords(tokenizer, Template("{{ text }}"), "label", words, [0, 1], kind, 32)
    batch = objective.collate(objective.encode([{"text": t, "label": i % 2} for i, t in enumerate(TEXTS)]))
    optimizer = train(method, model)
    against_copies(optimizer, objective, batch, 1e-12)
    assert (optimizer.evaluator.mode, optimizer.evaluator.reason) == ("lanes", "")


def test_losses_are_read_when_all_forwards_are_on_their_way() -> None:
    """A model over several devices works on several points at a time: nothing waits for a loss before the last."""
    events: list[str] = []

    class Late(Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func in (Tensor.to, Tensor.cpu, Tensor.item, Tensor.tolist, Tensor.double):
                events.append("read")
            return super().__torch_function__(func, types, args, kwargs or {})

    def objective(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        events.append("forward")
        return squares(model, batch).as_subclass(Late)

    optimizer = train("mezo", seeded(lambda: nn.Linear(3, 2)), lanes="off", queries=3)
    optimizer.estimate(objective, inputs(2, 3))
    assert events[:7] == ["forward"] * 6 + ["read"]


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "opt", "gpt2", "phi", "gpt_neox"])
@pytest.mark.parametrize("method", ["mezo", "lozo", "fzoo", "subzero", "grzo"])
def test_a_forward_on_a_gpu_waits_for_nothing(family: str, method: str) -> None:
    """Both sides of a later step: no number is read there, nothing is copied to or from the host.

    Whether position ids are alike in all copies (OPT) is taken from the first batch, and looked at with the losses.
    """
    here, there = train(method, tiny(family)), train(method, tiny(family).to(GPU))
    batch = batch_for(family)
    away = {name: tensor.to(GPU) for name, tensor in batch.items()}
    for step in range(2):
        points = [point for point in here.estimator.points(0, step) if point.scale][:2]
        _, lanes = here.evaluator.stacked(loss, batch, points, nothing, here.direction)
        with Copies() as copies:
            found, seen = there.evaluator.stacked(loss, away, points, nothing, there.direction, lanes.choices)
    assert copies.found == [] and found.device == GPU and found.shape == (len(points), 3)
    assert len(seen.doubts) == len(lanes.choices) == (family == "opt")


class Doubting:
    """In place of a recorder: losses that are wrong, and doubted."""

    asked = 0

    def prove(self, *given: Any) -> None:
        """Nothing."""

    def losses(self, objective: Any, batch: Any, points: Any, within: Any) -> Seen:
        self.asked += 1
        return Seen(torch.full((len(points), 3), 9.0), torch.tensor(True))


def test_losses_that_are_doubted_are_not_used() -> None:
    """The batch is evaluated anew, with every choice waited for, and counts as evaluated twice."""
    optimizer = train("mezo", tiny("opt"))
    evaluator, batch = optimizer.evaluator, batch_for("opt")
    points = optimizer.estimator.points(0, 0)
    expected = evaluator.losses(loss, batch, points)
    evaluator.recorder, before = Doubting(), evaluator.forwards  # type: ignore[assignment]
    assert torch.equal(evaluator.losses(loss, batch, points), expected)
    assert evaluator.recorder.asked == 1 and evaluator.forwards == before + 4  # type: ignore[union-attr]


def test_a_choice_as_planned_leaves_a_doubt() -> None:
    """What was planned is taken unseen; without a plan the value is waited for."""
    lanes = Lanes(Dense(), [], 1, plan=[True, False])
    assert [lanes.choose(torch.tensor(value)) for value in (False, False, True)] == [True, False, True]
    assert [bool(doubt) for doubt in lanes.doubts] == [True, False] and bool(lanes.doubted())
    assert Lanes(Dense(), [], 1).doubted() is None
    found, doubted = fetched([Seen(torch.ones(2, 3), None), Seen(torch.zeros(1, 3), torch.tensor(False))])
    assert found.dtype == torch.float64 and found.tolist() == [[1.0] * 3] * 2 + [[0.0] * 3] and not doubted
