"""A causal batch as plain sequences of tokens, for a server that gives the log-probability of each token.

`Causal` (`readers.py`) makes two forms of a batch, and a row of one loss has one of them without the candidates'
dimension. All come to the same here: a sequence for each candidate of each row, whose score is the mean
log-probability of its scored tokens. For candidates of one token a model's logits take the place of log-probabilities;
within a row they differ by a constant, which no loss sees.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from zotune.errors import ConfigError
from zotune.objective.base import Batch
from zotune.objective.scoring import IGNORE


@final
@dataclass(frozen=True, slots=True)
class Scored:
    """Token ids, and the places of those that are scored: never the first, which nothing predicts."""

    tokens: tuple[int, ...]
    places: tuple[int, ...]


def sequences(batch: Batch) -> list[Scored]:
    """The candidates of all rows, row after row. Raises ConfigError for a batch of another kind of model."""
    tensors = {name for name, value in batch.items() if isinstance(value, Tensor)}
    if "words" in batch and "keep" in batch:
        return _words(batch)
    if {"input_ids", "targets"} <= tensors and not tensors & {"attention_mask", "segments", "said"}:
        return _spans(batch)
    raise ConfigError(
        "a server scores what a causal model reads from left to right, one candidate a sequence; this batch is of "
        "another form. Remedy: --scorer torch."
    )


def mean_scores(batch: Batch, found: Sequence[Sequence[float]]) -> Tensor:
    """Mean log-probabilities (rows, candidates) float64, from those of the scored tokens of each of `sequences`."""
    means = [math.fsum(values) / len(values) for values in found]
    rows = (batch["words"] if "words" in batch else batch["targets"]).shape[0]
    return torch.tensor(means, dtype=torch.float64).view(rows, -1)


def _words(batch: Batch) -> list[Scored]:
    """Every candidate is one token behind the same prompt."""
    found = []
    first = batch["input_ids"].shape[1] - batch["keep"]  # of the last `keep` positions
    prompts = zip(batch["input_ids"].tolist(), batch["position"].tolist(), batch["words"].tolist(), strict=True)
    for read, position, words in prompts:
        length = first + position + 1
        found += [Scored((*read[:length], word), (length,)) for word in words]
    return found


def _spans(batch: Batch) -> list[Scored]:
    """Targets belong to the last positions of the inputs; the last of them is not fed."""
    inputs, targets = batch["input_ids"], batch["targets"]
    found = []
    first = inputs.shape[-1] - targets.shape[-1] + 1  # a position's target is the token behind it
    for read, wanted in zip(inputs.flatten(0, -2).tolist(), targets.flatten(0, -2).tolist(), strict=True):
        places = tuple(first + place for place, token in enumerate(wanted) if token != IGNORE)
        found.append(Scored((*read[: places[-1]], wanted[places[-1] - first]), places))
    return found
