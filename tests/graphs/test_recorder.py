"""Played forwards give the losses of forwards that are run, to the bit, whatever changes from step to step."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests import models
from tests.gpu import GPU
from tests.models import LANE_FAMILIES, batch_for, inputs, loss, seeded, squares, tiny, train
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from zotune import direction as drawing
from zotune.errors import ConfigError
from zotune.graphs import held
from zotune.graphs.graph import Graph, Tape
from zotune.graphs.recorder import Recorder, recorder_for
from zotune.reuse import Reuse

one_thread = models.one_thread
METHODS = ["mezo", "sparse_mezo", "lozo", "fzoo", "es", "eggroll", "meazo", "subzero", "zo_muon", "lozo_m"]


class Counted(Graph):
    """A tape whose plays are counted; others can ask whether one is recording."""

    plays, recording, playing = 0, False, False

    def __init__(self) -> None:
        self._tape = Tape()

    def record(self, run: Callable[[], Tensor]) -> Tensor:
        Counted.recording = True
        try:
            return self._tape.record(run)
        finally:
            Counted.recording = False

    def play(self) -> None:
        Counted.plays += 1
        Counted.playing = True
        self._tape.play()
        Counted.playing = False


@pytest.fixture(autouse=True)
def asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers looks at the values of a padding mask, but not while a GPU records: here it asks the tape."""
    monkeypatch.setattr("transformers.masking_utils.is_tracing", lambda tensor=None: Counted.recording)


def recorded(optimizer: Any) -> Any:
    """The optimizer, with a recorder on the CPU."""
    Counted.plays = 0
    optimizer.evaluator.recorder = Recorder(optimizer.evaluator, Counted)
    return optimizer


def courses(method: str, family: str, dtype: torch.dtype = torch.float32, **options: Any) -> tuple[Any, Any]:
    """Seven steps over batches of two shapes, run and played: the optimizers, losses and weights compared."""
    both = [train(method, tiny(family, dtype), **options) for _ in range(2)]
    recorded(both[1])
    losses: list[list[Any]] = [[], []]
    for step in range(7):
        for seen, optimizer in zip(losses, both, strict=True):
            seen.append(optimizer.step(loss, batch_for(family, rows=2 + step % 2, seed=step)))
    assert losses[0] == losses[1]
    for optimizer in both:
        optimizer.fold()
    assert models.same_bits(models.weights(both[0].model), models.weights(both[1].model))
    return both[0], both[1]


@pytest.mark.parametrize("family", LANE_FAMILIES)
@pytest.mark.parametrize("method", ["mezo", "lozo"])
@pytest.mark.parametrize("size", [1 << 14, 64], ids=["small", "large"])
def test_a_course_is_the_same(family: str, method: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other rows, directions and updates that wait, in batches of two sizes: losses and weights to the bit."""
    for place in (held, drawing):
        monkeypatch.setattr(place, "_SMALL", size)
    options = {"fold_every": 3} if method == "lozo" else {}
    _, played = courses(method, family, **options)
    assert played.evaluator.recorder.reason == "" and Counted.plays >= 7


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("lanes", ["auto", "off"])
def test_a_course_of_every_kind_of_method(method: str, lanes: Any) -> None:
    """Several queries, populations, bases and masks, in 16 bits, both sides together and one by one."""
    run, played = courses(method, "llama", torch.bfloat16, lanes=lanes)
    assert played.evaluator.recorder.reason == "" and Counted.plays >= 7
    assert run.evaluator.forwards == played.evaluator.forwards


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("agzo", "depends on more than the step's key"),
        ("curvzo", "depends on more than the step's key"),
        ("grzo", "directions of their own"),
    ],
)
def test_other_methods_are_run(method: str, reason: str) -> None:
    """The reason is kept, and nothing else changes."""
    _, played = courses(method, "llama")
    assert reason in played.evaluator.recorder.reason and not Counted.plays


def test_parts_of_the_scope_in_each_step_are_run() -> None:
    """What moves is another part each time."""
    _, played = courses("mezo", "llama", blocks="cycle")
    assert "more than the step's key" in played.evaluator.recorder.reason


@pytest.mark.parametrize("lanes", ["auto", "off"])
def test_what_lies_below_the_scope_has_a_place(lanes: Any) -> None:
    """Activations that were captured of each batch: the same losses as without a recorder, kept or captured anew."""
    ends = []
    for keep in (True, False):
        for record in (True, False):
            model = tiny("llama")
            optimizer = train("mezo", model, scope="last:1", lanes=lanes)
            if record:
                recorded(optimizer)
            reuse, seen = Reuse(optimizer.perturber, 1 << 20, keep=keep), []
            reuse.prepare(loss, batch_for("llama"), optimizer.estimator.points(0, 0)[0])
            for step in range(6):
                batch = batch_for("llama", seed=step % 2)
                seen.append(optimizer.estimate(loss, batch, within=reuse.within(loss, batch, step % 2)))
                optimizer.step()
            ends.append(seen)
            assert not record or (optimizer.evaluator.recorder.reason == "" and Counted.plays >= 6)
    assert ends[0] == ends[1] == ends[2] == ends[3]


class Noted(nn.Module):
    """Adds a number that the caller of the model keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.number = 0.0

    def forward(self, x: Tensor) -> Tensor:
        self.number += 1.0
        return self.layer(x) + self.number


def test_a_model_that_counts_its_calls_is_not_recorded(caplog: pytest.LogCaptureFixture) -> None:
    """Its numbers would stay those of the recording: the proof sees it, says so, and forwards are run."""
    optimizer = recorded(train("mezo", seeded(Noted), lanes="off"))
    with caplog.at_level(logging.INFO, logger="zotune.graphs.recorder"):
        optimizer.step(squares, inputs(3, 4))
    assert "no forwards are recorded: a played forward differs" in caplog.text
    assert "differs" in optimizer.evaluator.recorder.reason
    plays = Counted.plays
    optimizer.step(squares, inputs(3, 4))
    assert Counted.plays == plays


def test_a_shape_that_cannot_be_recorded_is_run_alone() -> None:
    """The model chooses by a value for long batches only: the others are played."""

    class Choosy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x if x.shape[1] < 5 or bool((x > 0).any()) else -x)

    optimizer, plain = recorded(train("mezo", seeded(Choosy))), train("mezo", seeded(Choosy))
    for step in range(4):
        length = 4 + step % 2
        before = Counted.plays
        batch = inputs(3, length, 4, seed=step)
        assert optimizer.step(squares, batch) == plain.step(squares, batch)
        assert (Counted.plays == before) == (length == 5)


def test_objectives_and_constants_have_recordings_of_their_own() -> None:
    """Another function, or another number in the batch, is another forward."""

    def scaled(model: nn.Module, batch: Any) -> Tensor:
        return squares(model, {"x": batch["x"]}) * batch["times"]

    layer: Callable[[], nn.Module] = lambda: nn.Linear(4, 4)  # noqa: E731
    optimizer, plain = recorded(train("mezo", seeded(layer))), train("mezo", seeded(layer))
    for times in (2.0, 3.0, 2.0):
        batch = {**inputs(3, 4), "times": times}
        assert optimizer.step(scaled, batch) == plain.step(scaled, batch)
        assert optimizer.step(squares, inputs(3, 4)) == plain.step(squares, inputs(3, 4))
    assert len(optimizer.evaluator.recorder._known) == 3
    unhashable = {**inputs(3, 4), "times": [1.0]}
    before = Counted.plays
    optimizer.step(lambda model, batch: squares(model, {"x": batch["x"]}), unhashable)
    assert Counted.plays == before


def test_recordings_that_were_not_played_for_long_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most so many are kept; what is recorded again gives the same."""
    monkeypatch.setattr("zotune.graphs.recorder._MOST", 2)
    optimizer, plain = recorded(train("mezo", tiny("llama"))), train("mezo", tiny("llama"))
    for rows in (2, 3, 4, 2, 4):
        batch = batch_for("llama", rows=rows, seed=rows)
        assert optimizer.step(loss, batch) == plain.step(loss, batch)
        assert len(optimizer.evaluator.recorder._known) <= 2


def test_closures_are_run() -> None:
    """Their batch is theirs."""
    optimizer = recorded(train("mezo", tiny("llama")))
    batch = batch_for("llama")
    assert optimizer.step(lambda: loss(optimizer.model, batch).mean()) == pytest.approx(
        train("mezo", tiny("llama")).step(loss, batch), abs=1e-6
    )
    assert not Counted.plays


def test_where_there_is_no_gpu_nothing_is_recorded() -> None:
    """auto leaves it, on says why, with the remedy; a radius that changes would need a recording for each step."""
    optimizer = train("mezo", tiny("llama"))
    given = (optimizer.evaluator, optimizer.estimator, 0, False)
    for mode in ("off", "auto"):
        assert recorder_for(given[0], mode, *given[1:]) is None  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="graphs is on, but the model is not on one GPU. Remedy: graphs auto"):
        train("mezo", tiny("llama"), graphs="on")
    assert train("mezo", tiny("llama").to(GPU), graphs="auto").evaluator.recorder is None


class Launches(TorchDispatchMode):
    """Counts operations that make something, those of a play left out."""

    def __init__(self) -> None:
        super().__init__()
        self.found = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        views = func.overloadpacket.__name__ in (
            "view",
            "detach",
            "slice",
            "split_with_sizes",
            "select",
            "alias",
            "empty",
        )
        self.found += not views and not Counted.playing
        return out


@pytest.mark.parametrize("queries", [1, 3])
def test_what_is_done_beside_the_forward_does_not_grow_with_the_layers(queries: int) -> None:
    """Drawing, sums and the vectors' update of LoZO: as many operations for four blocks as for two, whatever the width.

    On a GPU each is a launch, and of a model with hundreds of tensors the launches of each alone would cost more than
    the forward.
    """
    found = []
    for layers in (2, 4):
        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "vocab_size": 40}
        model = seeded(lambda: LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=layers)))  # noqa: B023
        optimizer = recorded(train("lozo", model.to(torch.bfloat16), interval=9, fold_every=9, queries=queries))
        for step in range(3):
            optimizer.step(loss, batch_for("llama", seed=step))
        with Launches() as launches:
            optimizer.step(loss, batch_for("llama", seed=3))
        assert optimizer.evaluator.recorder.reason == ""
        found.append(launches.found)
    assert found[0] == found[1] < 700 * queries


@pytest.mark.gpu
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_graphs_of_a_gpu(method: str, dtype: torch.dtype) -> None:
    """The losses of forwards that are run, up to rounding, over seven steps; all of them were recorded."""
    seen: list[list[Any]] = [[], []]
    for graphs, losses in (("off", seen[0]), ("on", seen[1])):
        optimizer = train(method, tiny("llama", dtype).to("cuda"), lr=0.0, graphs=graphs)
        for step in range(7):
            batch = {
                name: tensor.to("cuda") for name, tensor in batch_for("llama", rows=2 + step % 2, seed=step).items()
            }
            losses.append(optimizer.step(loss, batch))
        assert graphs == "off" or optimizer.evaluator.recorder.reason == ""
    assert seen[0] == pytest.approx(seen[1], abs=64 * torch.finfo(dtype).eps)
