"""Reading a perturbed table of embeddings: only the rows that are looked up, each lane its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests import lanes, models
from tests.lanes import LANES, POINTS, ROWS, explicit, ids
from tests.models import normals

from zotune.direction import Factors
from zotune.lazy import Derived
from zotune.perturb import Perturber

one_thread, perturber = models.one_thread, lanes.perturber


def test_position_tables_as_wide_as_the_batch_are_not_taken_for_examples(perturber: Perturber) -> None:
    """T5's T x T buckets with T = lanes * rows: shapes alone would cut them; ids that differ between lanes say no."""
    size = ROWS * LANES
    buckets = (torch.arange(size)[:, None] - torch.arange(size)).abs() % 11
    with torch.no_grad(), perturber.at(*POINTS, rows=ROWS) as seen:
        found = F.embedding(buckets, perturber.model.table)
        assert isinstance(found, Derived) and seen.trace == ["embedding shared by all examples"]
    for part, point in zip(found.parts, POINTS, strict=True):
        torch.testing.assert_close(part, F.embedding(buckets, explicit(perturber, point).table), rtol=0, atol=1e-12)


def test_noise_is_drawn_for_looked_up_rows_alone(perturber: Perturber, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the rows once for each direction, whatever the number of lanes and of places that read it."""
    drawn: list[list[int]] = []
    inner = type(perturber.direction).rows

    def rows(direction: Any, target: Any, key: Any, wanted: torch.Tensor) -> torch.Tensor:
        drawn.append(wanted.tolist())
        return inner(direction, target, key, wanted)

    monkeypatch.setattr(type(perturber.direction), "rows", rows)
    read = torch.tensor([[1, 9, 1]] * (ROWS * LANES))
    with torch.no_grad(), perturber.at(*POINTS, rows=ROWS):
        F.embedding(read, perturber.model.table)
    assert drawn == [[1, 9]] * 2


def test_a_waiting_update_is_read_too(perturber: Perturber) -> None:
    """Rows of the weight, of the waiting low-rank update and of the noise, to 1e-12."""
    u, v = normals((11, 2), 3, torch.float64), normals((4, 2), 4, torch.float64)
    holder: Any = perturber.model
    perturber.pending["table"] = Factors(u, v, 0.5)
    with torch.no_grad():
        with perturber.at(*POINTS, rows=ROWS):
            found = F.embedding(ids(), holder.table)
        for part, point in zip(found.chunk(LANES), POINTS, strict=True):
            table = explicit(perturber, point).table + 0.5 * u @ v.t()
            torch.testing.assert_close(part, F.embedding(ids()[:ROWS], table), rtol=0, atol=1e-12)
