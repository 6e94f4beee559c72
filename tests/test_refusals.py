"""Parts that do not go together are refused before the first step, each with its remedy."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.models import Weights, batch_for, loss, tiny, train
from tests.sharings import Alone
from torch import nn

from zotune.config import TrainConfig
from zotune.direction import Dense
from zotune.engines.offload import Offload
from zotune.errors import ConfigError, UserError
from zotune.load import load_model
from zotune.low_rank import LowRank
from zotune.methods import METHODS
from zotune.momentum import Momentum
from zotune.perturb import Perturber
from zotune.refusals import (
    check_banks,
    check_examples,
    check_folding,
    check_matrices,
    check_module,
    check_offload,
    check_parallel,
    no_example,
    no_inputs,
)
from zotune.rule import Sgd


@pytest.mark.parametrize("method", METHODS)
def test_parameters_are_no_model(method: str) -> None:
    """What torch's own optimizers take is refused by every method, with what to pass."""
    given: Any = tiny("llama").parameters()
    with pytest.raises(
        UserError, match=r"built on a model, got generator\. Remedy: pass the nn\.Module itself; scope="
    ):
        METHODS[method].build(given, lr=1e-3)
    with pytest.raises(UserError, match="got list"):
        check_module([nn.Parameter(torch.ones(2))])


# Their papers say of vectors what the rest of a model gets; of a scope of nothing else they do not speak.
OF_MATRICES = {"lozo", "lozo_m", "loren", "agzo", "aimzo", "subzero", "zo_muon", "eggroll"}


@pytest.mark.parametrize("method", METHODS)
def test_a_method_of_matrices_wants_one(method: str) -> None:
    """Under its name another method would run: refused when it is built, also where only a part moves in a step."""
    vectors, both = Weights(b=torch.ones(7)), Weights(a=torch.ones(4, 3), b=torch.ones(7))
    train(method, both)
    if method not in OF_MATRICES:
        train(method, vectors)
        return
    with pytest.raises(ConfigError, match=f"{method} steps along matrices, .* holds only vectors. Remedy: a scope"):
        train(method, vectors)
    with pytest.raises(ConfigError, match="holds only vectors"):
        train(method, tiny("llama"), scope="norms", blocks="cycle")
    direction = train(method, both).direction
    check_matrices(method, direction, train("mezo", both).perturber.targets())


def test_what_is_said_where_nothing_shows_inputs() -> None:
    """The method, the first of the scope, and the way out."""
    said = str(no_inputs("agzo", ["a", "b", "c"]))
    assert said.startswith("agzo takes its directions from ") and "(a, b, ...). Remedy: a scope with linear" in said


def test_impossible_windows_are_refused() -> None:
    """Windows that cut across a refresh, any window for a dense method, and decay with waiting updates."""
    for method, every in (("lozo", 2), ("mezo", 3), ("lozo", 0)):
        with pytest.raises(ConfigError, match="fold_every is .* Remedy: "):
            train(method, Weights(a=torch.ones(4, 4)), fold_every=every)
    with pytest.raises(ConfigError, match="weight decay"):
        train("lozo", tiny("llama"), fold_every=3, weight_decay=0.1)


def test_a_divisor_of_the_window_is_fine() -> None:
    """1 for every method, any divisor for a low-rank one, and decay as long as nothing waits."""
    decayed = [{"weight_decay": 0.0}, {"weight_decay": 0.1}]
    check_folding(1, Dense(), decayed)
    for every in (1, 2, 3, 6):
        check_folding(every, LowRank(2, 6), decayed[:1])
    with pytest.raises(ConfigError, match="fold_every is 4, which does not divide the 6 steps"):
        check_folding(4, LowRank(2, 6), decayed[:1])
    with pytest.raises(ConfigError, match="weight decay writes every weight in every step. Remedy: fold_every=1"):
        check_folding(2, LowRank(2, 6), decayed)


def test_examples_that_cannot_be_told_apart() -> None:
    """A closure, and a weight for all of them, are refused for a method that needs a loss of each."""
    check_examples("grzo", {}, 1.0)
    with pytest.raises(UserError, match="grzo needs one loss for each example, and a closure.*Remedy"):
        check_examples("grzo", None, 1.0)
    with pytest.raises(UserError, match="each with weight 1. Remedy: leave weight out"):
        check_examples("grzo", {}, 2.0)
    assert "Remedy: leave out batches without rows" in str(no_example())


def test_offload_is_for_one_process_and_a_method_without_a_state() -> None:
    """Other processes, and a rule with a memory, are refused by name; mezo's parts are not."""
    check_offload("mezo", Dense(), Sgd(), None)
    with pytest.raises(ConfigError, match="the blocks of one process.* Remedy: leave --offload out, or start without"):
        check_offload("mezo", Dense(), Sgd(), Alone())
    with pytest.raises(
        ConfigError, match="an update of mine needs more .* Remedy: leave --offload out, or take a method"
    ):
        check_offload("mine", Dense(), Momentum(0.9, 1.0), None)
    model = tiny("llama")
    with pytest.raises(ConfigError, match="the blocks of one process"):
        train("mezo", model, offload=Offload(model), parallel=Alone())


def test_a_sharded_model_is_shared_in_one_way() -> None:
    """Its processes take part in every forward, so they cannot part over micro-batches; whole models can."""
    perturber, sharing = Perturber(nn.Linear(2, 2), ["weight"], Dense()), Alone()
    check_parallel(perturber, sharing, "mezo", False)
    perturber.sharding = True  # type: ignore[assignment]  # a FSDP2 model needs a process group
    check_parallel(perturber, None, "mezo", True)
    with pytest.raises(ConfigError, match="every process takes part in every forward, and parallel is 'alone'. Remedy"):
        check_parallel(perturber, sharing, "mezo", False)
    for mode in ("shard", "data+shard"):
        sharing.mode, sharing.in_step = mode, mode != "shard"
        check_parallel(perturber, sharing, "mezo", False)
    with pytest.raises(ConfigError, match="grzo may run its examples one by one.* Remedy: parallel 'shard'"):
        check_parallel(perturber, sharing, "grzo", True)


def test_processes_that_share_nothing_are_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """At the first step of an optimizer without `parallel`, where several have joined; never of one process."""
    model, batch = tiny("llama"), batch_for("llama")
    for count, said in ((1, 0), (3, 1)):
        asked = {"is_available": lambda: True, "is_initialized": lambda: True, "get_world_size": lambda c=count: c}
        monkeypatch.setitem(sys.modules, "torch.distributed", SimpleNamespace(**asked))
        caplog.clear()
        optimizer = train("mezo", model)
        for _ in range(2):
            optimizer.step(loss, batch)
        assert len(caplog.messages) == said
    assert caplog.records[0].levelno == logging.WARNING and "3 processes have joined" in caplog.text
    assert "zotune.OwnBatches()" in caplog.text


def test_a_bank_wants_factors_and_no_decay(config: Callable[..., TrainConfig]) -> None:
    """Of a model without banks nothing is asked; of one with them, a low-rank direction and no decay."""
    decayed, still = [{"weight_decay": 0.1}], [{"weight_decay": 0.0}]
    check_banks(Perturber(nn.Linear(2, 2), ["weight"], Dense()), Dense(), decayed, "mezo", 0)
    banked = train("lozo", load_model(config(scope="bank")), scope="bank").perturber
    thin = banked.direction
    check_banks(banked, thin, still, "lozo", 0)
    with pytest.raises(ConfigError, match="a bank's base is read-only, so it cannot decay"):
        check_banks(banked, thin, decayed, "lozo", 0)
    with pytest.raises(
        ConfigError, match="mine has no low-rank form for .*, which is kept as factors. Remedy: --method"
    ):
        check_banks(banked, Dense(), still, "mine", 0)
