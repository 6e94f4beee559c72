"""The block with the first massive activations: found, named in the run, trained alone, or refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.models import batch_for, tiny
from torch import nn

from zotune.config import TrainConfig
from zotune.dominant import dominant_layer
from zotune.errors import ConfigError
from zotune.session import Session


class Residual(nn.Module):
    """A block that adds `peak` to one number of the first token."""

    def __init__(self, peak: float) -> None:
        super().__init__()
        self.peak = nn.Parameter(torch.tensor(peak))

    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor]:
        jump = torch.zeros_like(hidden)
        jump[:, 0, 3] = self.peak
        return (hidden + jump,)


class Stack(nn.Module):
    """Blocks with these peaks over activations of size about one."""

    def __init__(self, *peaks: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Residual(peak) for peak in peaks)

    def forward(self) -> torch.Tensor:
        hidden = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
        for layer in self.layers:
            (hidden,) = layer(hidden)
        return hidden


def test_the_first_block_of_the_greatest_peak() -> None:
    """A small bump before it and a further rise behind it do not count; no gradient is kept, no weight changes."""
    model = Stack(20.0, 300.0, 0.0, 200.0)
    assert dominant_layer(model, model) == 1
    assert [float(p.detach()) for p in model.parameters()] == [20.0, 300.0, 0.0, 200.0]
    assert not any(layer._forward_hooks for layer in model.layers)


def test_a_model_without_massive_activations_is_refused() -> None:
    """Also a small random transformer, and a model without a list of blocks."""
    model = tiny("llama")
    given = {key: value for key, value in batch_for("llama").items() if key != "labels"}
    for run in (
        lambda: dominant_layer(Stack(5.0, 6.0), Stack(5.0, 6.0)),
        lambda: dominant_layer(model, lambda: model(**given)),
    ):
        with pytest.raises(ConfigError, match="no block of this model has massive activations.*Remedy: block:N"):
            run()
    with pytest.raises(ConfigError, match="needs a model with a list of blocks"):
        dominant_layer(nn.Linear(2, 2), lambda: None)


def test_a_run_trains_that_block_alone(config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    """The session finds it with the run's first batch on the base weights; `&` still narrows it."""
    monkeypatch.setattr("zotune.dominant.MASSIVE", 0.0)
    session = Session(config(scope="dominant&norms")).begin()
    assert session.scope.endswith("&norms") and session.scope.startswith("block:")
    number = session.scope[len("block:") : -len("&norms")]
    assert session.optimizer.names and all(f"layers.{number}." in name for name in session.optimizer.names)
    assert session.header()["config"]["scope"] == "dominant&norms"
