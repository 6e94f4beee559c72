"""QZO against the paper's formulas."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from tests.models import Weights, normals, of
from torch import nn

from zotune.errors import ConfigError
from zotune.methods import QZO
from zotune.noise import Key, noise


class Scaled(nn.Module):
    """A parameter with a scale's name and one without."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = Weights(quant_scale=normals((6, 5), 2, torch.float64).abs())
        self.other = nn.Parameter(normals((4,), 3, torch.float64) - 0.5)

    def forward(self) -> torch.Tensor:
        return torch.cat([self.layer().reshape(-1), self.other])


@pytest.mark.parametrize(("clip", "held"), [(1e9, False), (2.0, True)])
def test_four_steps_equal_the_formula(clip: float, held: bool) -> None:
    """d' = clip(d, -C, C), Delta <- max(Delta - lr d' z, 0) to 1e-11; other parameters may go below zero."""
    model, lr, eps = Scaled(), 0.1, 1e-2
    scale, other = model.layer.quant_scale.detach().clone().flatten(), model.other.detach().clone()
    optimizer = QZO(model, lr=lr, eps=eps, clip=clip, seed=6)
    clipped = zeros = 0
    for step in range(4):
        z = noise("gaussian", Key(6, step), "layer.quant_scale", 0, 30).double()
        y = noise("gaussian", Key(6, step), "other", 0, 4).double()
        plus, minus = ((scale + s * eps * z).square().sum() + (other + s * eps * y).square().sum() for s in (1, -1))
        d = float((plus - minus) / (2 * eps))
        clipped += abs(d) > clip
        d = max(-clip, min(clip, d))
        scale, other = (scale - lr * d * z).clamp(min=0), other - lr * d * y
        zeros += int((scale == 0).sum())
        optimizer.step(of(lambda joined: joined.square().sum()), {})
        torch.testing.assert_close(model.layer.quant_scale.flatten(), scale, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(model.other.detach(), other, rtol=1e-11, atol=1e-11)
    assert (clipped > 0) == held and zeros and bool((other < 0).any())


def test_each_direction_is_clipped_before_the_mean() -> None:
    """Two directions, slopes +8 and -1 with C 2: coefficients 2/2 and -1/2."""
    estimator = QZO(Weights(a=normals(3, 1)), eps=0.5, clip=2.0, queries=2).estimator
    assert [probe.coef for probe in estimator.probes(0, 0, [8.0, 0.0, 0.0, 1.0])] == [1.0, -0.5]


@pytest.mark.parametrize("clip", [0.0, -1.0, math.nan, math.inf])
def test_a_clip_that_is_none_is_refused(clip: float) -> None:
    """With a remedy."""
    with pytest.raises(ConfigError, match="clip must be a positive number.*Remedy: 100"):
        QZO(Weights(a=normals(3, 1)), clip=clip)


def test_a_scope_of_other_parameters_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """On scales alone nothing; else how many are none, and the scope that is meant."""
    with caplog.at_level(logging.WARNING, logger="zotune"):
        QZO(Scaled(), scope="regex:quant_scale")
        assert not caplog.records
        QZO(Scaled())
    assert "1 of 2 parameters in scope are none, such as other:" in caplog.text and "--scope scales" in caplog.text
