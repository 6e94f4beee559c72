"""Parameter groups: their own lr and decay, foreign tensors, what decays."""

from __future__ import annotations

import pytest
import torch
from tests import models
from tests.models import (
    Weights,
    batch_for,
    loss,
    normals,
    of,
    tiny,
    train,
    weights,
)
from torch import nn

from zotune.errors import ConfigError, UserError
from zotune.noise import Key, noise
from zotune.records import StepRecord

one_thread = models.one_thread
methods = pytest.mark.parametrize("method", models.METHOD_ROWS)


def start(dtype: torch.dtype = torch.float64) -> Weights:
    return Weights(a=normals((6, 5), 2, dtype), b=normals(7, 1, dtype))


def test_groups_have_their_own_lr_and_decay() -> None:
    """Two groups move by -lr_i coef z and decay by lr_i wd_i; parameters in no group stay."""
    model = Weights(a=normals((6, 5), 2, torch.float64), b=normals(7, 1, torch.float64), c=normals(3, 4, torch.float64))
    before = weights(model)
    groups = [{"params": [model.b], "lr": 0.1}, {"params": [model.a], "lr": 0.01, "weight_decay": 0.5}]
    optimizer = train("mezo", model, lr=9.0, params=groups, coverage=False)
    assert optimizer.names == ["b", "a"]
    records: list[StepRecord] = []
    optimizer.record = records.append
    optimizer.step(of(lambda theta: theta.square().sum()), {})
    coef = optimizer.probes[0].coef
    z = {name: noise("gaussian", Key(0, 0), name, 0, before[name].numel()).double() for name in ("a", "b")}
    expected = {"a": (1 - 0.005) * before["a"].flatten() - 0.01 * coef * z["a"], "b": before["b"] - 0.1 * coef * z["b"]}
    for name, value in expected.items():
        torch.testing.assert_close(weights(model)[name].flatten(), value, rtol=0, atol=1e-14)
    assert torch.equal(model.c, before["c"])
    assert records[0].lrs == (0.1, 0.01)


def test_parameters_alone_are_no_group() -> None:
    """`params` is a list of groups: without them it is refused with how to write one."""
    model = start()
    with pytest.raises(
        UserError, match=r"params holds a Parameter, not a parameter group\. Remedy: params=\[{'params'"
    ):
        train("mezo", model, params=model.parameters())


def test_a_foreign_tensor_in_a_group_is_refused() -> None:
    """A parameter group of another model, names that do not exist and repeated names."""
    with pytest.raises(UserError, match="not a parameter of the model"):
        train("mezo", start(), params=[{"params": [nn.Parameter(torch.zeros(2))]}])
    with pytest.raises(UserError, match="'nope'"):
        train("mezo", start(), scope=["a", "nope"])
    assert train("mezo", start(), scope=["b", "a", "b"]).names == ["b", "a"]
    with pytest.raises(ConfigError, match="unknown scope"):
        train("mezo", start(), scope="nope")


@methods
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_decay_reaches_matrices_that_no_norm_owns(method: str, family: str) -> None:
    """With a constant loss only the decay acts: matrices shrink by 1 - lr wd, vectors and norms keep their bits."""
    model = tiny(family, torch.float64)
    before = weights(model)
    optimizer = train(method, model, lr=0.1, weight_decay=0.2, coverage=False)
    # A forward whose values do not count: some methods look at the inputs of the layers.
    optimizer.step(lambda model, batch: 0 * loss(model, batch).double() + 1, batch_for(family))
    for name, parameter in model.named_parameters():
        expected = before[name] * (1 - 0.1 * 0.2) if parameter.ndim >= 2 else before[name]
        torch.testing.assert_close(parameter.data, expected, rtol=1e-15, atol=0)
        assert (parameter.ndim >= 2) != torch.equal(parameter.data, before[name]), name
