"""What every objective offers: rows to examples, examples to a batch, a batch to per-example losses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
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
    right: all options that count as right, where there is more than the label.
    scored: which tokens of the only option are scored; empty for all of them. sizes: characters of each option, where
    scores are also compared per character.
    blank: a prompt without content, for calibration. answers: texts that a generated answer is compared with.
    cut: whether tokens were left out because of max_length. number: which row of its file it is, from 0. asked: the row
    as a question (`data/asked.py`), where its completion is scored.
    """

    prompt: tuple[int, ...]
    options: tuple[tuple[int, ...], ...]
    label: int = 0
    mask: int = -1
    right: tuple[int, ...] = ()
    scored: tuple[bool, ...] = ()
    sizes: tuple[int, ...] = ()
    blank: tuple[int, ...] = ()
    answers: tuple[str, ...] = ()
    cut: bool = False
    number: int = 0
    asked: Any = field(default=None, compare=False, repr=False)


class Objective(ABC):
    """A function of (model, batch) to losses of shape (B,), and the way from rows to such batches.

    Every tensor of a batch has dim 0 = B, and no result depends on B or on the other rows: the optimizer may
    repeat a batch along dim 0 and hand it to a model whose parts treat the copies differently.
    Whether the model is in training mode is the caller's business.

    metric: what `judge` measures beside the loss. one_forward: whether the loss is a single forward, and `judge` runs
    the same one, so that activations captured from one serve the other. goes_on: whether it is several, of which all
    but the first go on from the cache of that one, as words follow a prompt. one_at_a_time: why several points cannot
    ride in one forward; empty where they may. set_level: whether a batch has one loss, of shape (), and no losses of
    its examples; then `over_set` measures a whole set. says: what is scored, in words, where that is not plain. parts:
    the names of what else is measured: `judge` then gives a row for each example, the metric's value first. Those of a
    reward are several scores, whose weighted sum is the metric. by_scores: whether `from_scores` gives the losses.
    """

    metric: str = "accuracy"
    one_forward: bool = True
    goes_on: bool = False
    one_at_a_time: str = ""
    set_level: bool = False
    says: str = ""
    parts: tuple[str, ...] = ()
    by_scores: bool = False

    @abstractmethod
    def encode(self, rows: Sequence[dict[str, Any]]) -> list[Example]:
        """Rows to examples, one each, same order. Raises DataError naming the row (1-based)."""

    @abstractmethod
    def lengths(self, examples: Sequence[Example]) -> list[int]:
        """Tokens of the longest sequence of each example: what a batch is padded to."""

    @abstractmethod
    def collate(self, examples: Sequence[Example]) -> Batch:
        """A padded batch on the CPU. Tensors are int64 or bool; what is no tensor is a constant of the batch."""

    @abstractmethod
    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """Losses (B,) in fp32, or fp64 where the model's logits are fp64; () for an objective on a set."""

    def rehearse(self, model: nn.Module, batch: Batch, times: Callable[[float], None]) -> None:
        """The forwards of a loss without a look at a value, for the meta device: the most that there can be.

        `times(n)` says that what follows stands for n of it; fewer forwards than there are then tell the cost of all.
        """
        self(model, batch)

    def witness(self, model: nn.Module, batch: Batch, first: int) -> Tensor:
        """Numbers (B,) by which a lane at wrong weights shows itself: the losses, or what is finer than they are.

        A batch that is stacked holds the copies `first`, `first + 1` and so on of its examples, one for each point.
        """
        return self(model, batch)

    def judge(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor | Sequence[Any] | None]:
        """Losses (B,) and which predictions are right, (B,) bool; for other metrics than accuracy scores, floats.

        None where nothing is predicted. An objective on a set gives no losses, and what `over_set` takes.
        """
        return self(model, batch), None

    def from_scores(self, scores: Tensor, batch: Batch) -> Tensor:
        """Losses (B,) from the candidates' mean log-probabilities (B, C), whoever computed them (`sequences.py`)."""
        raise NotImplementedError

    def over_set(self, found: Sequence[Any]) -> float:
        """The metric of a whole set, from what `judge` found of its examples."""
        raise NotImplementedError

    def prepare(self, model: nn.Module, examples: Sequence[Example]) -> None:
        """Choose between equivalent ways to compute the losses, with the base weights and a run's examples.

        Called once, before the first batch. It must depend on its arguments alone, so that a resumed run decides alike.
        """
        return

    def for_evaluation(self) -> Objective:
        """The objective that measures what this one trains, for the same examples: itself, unless it says otherwise."""
        return self


def to_device(batch: Batch, device: torch.device | str) -> Batch:
    """The batch with its tensors on `device`; constants unchanged."""
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
