"""What every objective offers: rows to examples, examples to a batch, a batch to per-example losses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

Batch = dict[str, Any]


@final
@dataclass(frozen=True, slots=True)
class Example:
    """One row as token ids.

    prompt: what is read (special tokens included). options: what is scored after it, one entry per
    candidate (one in all for language modelling). label: index of the right option.
    mask: position of the mask token in the prompt, -1 where there is none.
    """

    prompt: tuple[int, ...]
    options: tuple[tuple[int, ...], ...]
    label: int = 0
    mask: int = -1


class Objective(ABC):
    """A function of (model, batch) to losses of shape (B,), and the way from rows to such batches.

    Every tensor of a batch has dim 0 = B, and no result depends on B or on the other rows: the optimizer may
    repeat a batch along dim 0 and hand it to a model whose parts treat the copies differently.
    Whether the model is in training mode is the caller's business.
    """

    @abstractmethod
    def encode(self, rows: Sequence[dict[str, Any]]) -> list[Example]:
        """Rows to examples, one each, same order. Raises DataError naming the row (1-based)."""

    @abstractmethod
    def lengths(self, examples: Sequence[Example]) -> list[int]:
        """Tokens of the longest sequence of each example: what a batch is padded to."""

    @abstractmethod
    def collate(self, examples: Sequence[Example]) -> Batch:
        """A padded batch on the CPU. Ints are constants of the batch, tensors are int64."""

    @abstractmethod
    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """Losses (B,) in fp32, or fp64 where the model's logits are fp64."""

    def judge(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Losses (B,) and which predictions are right, (B,) bool or None where nothing is predicted."""
        return self(model, batch), None


def to_device(batch: Batch, device: torch.device | str) -> Batch:
    """The batch with its tensors on `device`; constants unchanged."""
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
