"""A model of equal blocks, and an objective on it."""

from __future__ import annotations

from typing import Any

from tests.models import seeded
from torch import Tensor, nn


def deep(blocks: int, width: int) -> Any:
    """A model of `blocks` blocks with a matrix of width x width each, and little else."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(width, width)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.linear(x).tanh()

    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks, self.head = nn.ModuleList(Block() for _ in range(blocks)), nn.Linear(width, 2)

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = block(x)
            return self.head(x)

    return seeded(Deep)


def squared(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The squared output of each row."""
    return model(batch["x"]).square().sum(-1)
