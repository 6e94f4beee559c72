"""The base class asks for four methods and judges nothing by itself."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from zotune.objective.base import Batch, Objective, to_device


def test_objective_is_abstract() -> None:
    """It cannot be made without its methods."""
    with pytest.raises(TypeError, match="abstract"):
        Objective()  # type: ignore[abstract]


def test_to_device_moves_tensors_and_keeps_constants() -> None:
    """Constants are passed through; the batch given is not changed."""
    batch: Batch = {"input_ids": torch.zeros(2, 3), "keep": 2}
    moved = to_device(batch, "meta")
    assert moved["input_ids"].device.type == "meta" and moved["keep"] == 2
    assert batch["input_ids"].device.type == "cpu"


def test_judge_without_predictions() -> None:
    """Losses and no verdict, unless a subclass has one."""

    class Constant(Objective):
        encode = lengths = collate = None  # type: ignore[assignment]

        def __call__(self, model: nn.Module, batch: Batch) -> torch.Tensor:
            """Two losses."""
            return torch.ones(2)

    losses, right = Constant().judge(nn.Identity(), {})
    assert losses.tolist() == [1, 1] and right is None
