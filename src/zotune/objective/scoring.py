"""Padding, next-token targets and the fp32 reductions that all objectives share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

IGNORE = -100
NONE = -1  # the choice of a row that has none
# Elements of logits upcast at once. On a CPU a piece stays in cache; elsewhere fewer launches matter more.
_CPU_PIECE = 2**20
_GPU_PIECE = 2**24


def widen(x: Tensor) -> Tensor:
    """At least fp32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def pad_right(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """(R, longest) int64, filled up on the right."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows], dtype=torch.int64)


def pad_left(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """(R, longest) int64, filled up on the left."""
    width = max(map(len, rows))
    return torch.tensor([[*[value] * (width - len(row)), *row] for row in rows], dtype=torch.int64)


def next_token_batch(
    prompts: Sequence[Sequence[int]], options: Sequence[Sequence[int]], pad: int
) -> tuple[Tensor, Tensor]:
    """Inputs (R, T) and targets (R, K) of `options[r]` read after `prompts[r]`.

    Targets belong to the last K positions, the fewest that hold every scored one; IGNORE elsewhere.
    The last token of a sequence is only ever a target, so it is not fed. Padding is on the right, after
    everything that is scored, where a causal model cannot see it.
    """
    inputs = [[*prompt, *option[:-1]] for prompt, option in zip(prompts, options, strict=True)]
    width = max(map(len, inputs))
    keep = width - min(map(len, prompts)) + 1
    targets = []
    for prompt, option in zip(prompts, options, strict=True):
        before = len(prompt) - 1 - (width - keep)
        after = keep - before - len(option)
        targets.append([*[IGNORE] * before, *option, *[IGNORE] * after])
    return pad_right(inputs, pad), torch.tensor(targets, dtype=torch.int64)


def mean_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean negative log-likelihood over the targets of each row that are not IGNORE.

    logits (R, K, V) in any float dtype, targets (R, K) -> (R,) in fp32 or wider, in nats per token.
    A few rows are upcast at a time, so no fp32 copy of all logits exists.
    """
    step = _rows_at_once(logits)
    flat = logits.reshape(-1, logits.shape[-1])
    wanted = targets.reshape(-1)
    nll = torch.cat(
        [
            functional.cross_entropy(
                widen(flat[start : start + step]),
                wanted[start : start + step],
                ignore_index=IGNORE,
                reduction="none",
            )
            for start in range(0, len(wanted), step)
        ]
    )
    return nll.view(targets.shape).sum(-1) / (targets != IGNORE).sum(-1)


def row_logsumexp(logits: Tensor) -> Tensor:
    """logsumexp over the vocabulary: (R, K, V) in any float dtype -> (R, K) in fp32 or wider, a few rows at a time."""
    step = _rows_at_once(logits)
    flat = logits.reshape(-1, logits.shape[-1])
    parts = [torch.logsumexp(widen(flat[start : start + step]), -1) for start in range(0, len(flat), step)]
    return torch.cat(parts).view(logits.shape[:-1])


def best(scores: Tensor) -> Tensor:
    """(B, C) -> (B,) int64: the highest score's index, the first of equals; NONE where that score is not finite.

    A NaN anywhere in a row leaves it without a choice; a candidate at -inf is only never chosen.
    """
    highest, index = scores.max(dim=1)
    return index.masked_fill(~highest.isfinite(), NONE)


def hits(right: Tensor, chosen: Tensor) -> Tensor:
    """(B,) bool: whether the chosen candidate (B,) is one of the right ones (B, C); NONE never is."""
    return right.gather(1, chosen.clamp(min=0)[:, None])[:, 0] & (chosen != NONE)


def _rows_at_once(logits: Tensor) -> int:
    piece = _CPU_PIECE if logits.device.type == "cpu" else _GPU_PIECE
    return max(1, piece // max(1, logits.shape[-1]))
