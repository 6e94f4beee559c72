"""Whether 16-bit weights feel the radius: the share that is told is the share that rounding leaves where it is."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from tests.models import batch_for, loss, normals, tiny, train

from zotune.direction import Dense, Target
from zotune.estimate import Point
from zotune.low_rank import LowRank
from zotune.noise import Key
from zotune.radius import unmoved

POINT = Point(Key(1, 0), 1e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [0.0, 1e-6, 0.02, 0.4, 1.0, 3.0, 9.0, 40.0])
def test_the_share_is_that_of_signs_that_change_nothing(dtype: torch.dtype, size: float) -> None:
    """With signs for z: the weights that `theta + eps z` leaves where they are, or are on the border of it."""
    weight = (size * (1 + 0.3 * normals((100, 200), 3))).to(dtype)
    told = unmoved([Target("w", weight)], Dense("rademacher"), POINT)
    signs = Dense("rademacher").block(Target("w", weight), POINT.key, 0, weight.numel()).view(100, 200)
    still = [(weight.float() + side * POINT.scale * signs).to(dtype) == weight for side in (1, -1)]
    assert told == pytest.approx(float((still[0] & still[1]).float().mean()), abs=0.02)


def test_what_is_never_made_has_no_limit() -> None:
    """Weights of 32 bits do not count, nor matrices whose low-rank term is added to activations, nor vectors."""
    matrix, vector = torch.full((30, 20), 9.0, dtype=torch.bfloat16), torch.full((600,), 9.0, dtype=torch.bfloat16)
    assert unmoved([Target("m", matrix)], Dense(), POINT) == 1.0
    low = LowRank(2, 3)
    both = [Target("m", matrix), Target("v", vector)]
    low.prepare(both)
    assert unmoved(both, Dense(), POINT) == 0.5 and unmoved(both, low, POINT) == 0.0
    assert unmoved([Target("f", matrix.view(30, 5, 4))], low, POINT) == 1.0
    assert unmoved([Target("m", matrix.float())], Dense(), POINT) == 0.0


@pytest.mark.parametrize(
    ("size", "eps", "dtype", "warns"),
    [
        (3.0, 1e-3, torch.bfloat16, True),
        (3.0, 1e-1, torch.bfloat16, False),
        (3.0, 1e-3, torch.float32, False),
        (0.02, 1e-3, torch.bfloat16, False),
    ],
)
def test_a_run_whose_probes_are_lost_says_so_once(
    size: float, eps: float, dtype: torch.dtype, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """At its first step: projections of size 3 in bfloat16 do not move by 1e-3."""
    model: Any = tiny("llama", dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "q_proj" in name:
                parameter.fill_(size)
    optimizer = train("mezo", model, eps=eps, scope="regex:q_proj")
    with caplog.at_level(logging.WARNING, logger="zotune.radius"):
        for _ in range(2):
            optimizer.step(loss, batch_for("llama"))
    assert len(caplog.messages) == warns
    if warns:
        said = caplog.messages[0]
        assert "100 % of the numbers in scope" in said and "bfloat16" in said and "eps 0.001" in said
        assert "Remedy: a larger eps" in said


def test_parts_that_rest_count_too(caplog: pytest.LogCaptureFixture) -> None:
    """With `blocks` each step moves a part of the scope: what is told is of all of it."""
    model: Any = tiny("llama", torch.bfloat16)
    with torch.no_grad():
        model.model.layers[1].self_attn.q_proj.weight.fill_(9.0)
    optimizer = train("mezo", model, scope="regex:q_proj", blocks="cycle", eps=1e-2)
    with caplog.at_level(logging.WARNING, logger="zotune.radius"):
        optimizer.step(loss, batch_for("llama"))
    assert "50 % of the numbers" in caplog.messages[0]
