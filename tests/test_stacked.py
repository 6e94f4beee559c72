"""Batches stacked as lanes: their rows, their copies, and the points of their examples."""

from __future__ import annotations

import torch

from zotune.estimate import Point
from zotune.noise import Key
from zotune.stacked import asked, batch_rows, repeat, spread_out


def test_rows_of_a_batch() -> None:
    """The first dimension that all tensors share; None where there is none or the batch is not a mapping."""
    assert batch_rows({"a": torch.zeros(3, 2), "b": torch.zeros(3), "k": 7}) == 3
    assert batch_rows({"a": torch.zeros(3), "b": torch.zeros(2)}) is None
    assert batch_rows({"a": torch.zeros(())}) is None
    assert batch_rows({"k": 7}) is None
    assert batch_rows([torch.zeros(3)]) is None


def test_repeating_stacks_whole_batches() -> None:
    """Lane after lane, not example after example; constants pass through."""
    found = repeat({"a": torch.tensor([[1, 2], [3, 4]]), "k": 7}, 2)
    assert found["a"].tolist() == [[1, 2], [3, 4], [1, 2], [3, 4]] and found["k"] == 7


def test_each_example_has_its_own_point() -> None:
    """Queries that follow each other, at the same radius; a point of the whole batch stays one."""
    own = Point(Key(1, 2, 5), 0.5, each=True)
    assert spread_out(own, 3) == [Point(Key(1, 2, query), 0.5) for query in (5, 6, 7)]
    assert spread_out(Point(Key(1, 2), 0.5), 3) == [Point(Key(1, 2), 0.5)]


def test_a_proof_asks_for_what_tells_more() -> None:
    """The witness of an objective, with the number of the copy; its losses where it has none, and outside proofs."""

    def objective(_model: object, batch: float) -> torch.Tensor:
        return torch.tensor([batch])

    model = torch.nn.Linear(1, 1)
    assert asked(objective, model, 2.0, 1).tolist() == [2.0]
    objective.witness = lambda _model, batch, copy: torch.tensor([batch, copy])  # type: ignore[attr-defined]
    assert asked(objective, model, 2.0, 1).tolist() == [2.0, 1.0] and asked(objective, model, 2.0, None).tolist() == [
        2.0
    ]
