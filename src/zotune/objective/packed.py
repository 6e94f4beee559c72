"""All candidates of an example in one sequence: the prompt is computed once, and no candidate sees another.

The sequence is prompt, candidate 1, candidate 2, ...; a mask of four dimensions hides the candidates from each other,
and each continues at the prompt's positions. One forward, no key-value cache: it rides in lanes, uses reused
activations and takes the memory of one sequence, where a cache would be copied once per candidate.

Whether a model heeds such a mask and such positions is not assumed but shown on examples of the run (`prove`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zotune.machine import is_shortage
from zotune.objective.base import Batch, Example, to_device
from zotune.objective.model_kind import accepts, last_logits, virtual_tokens
from zotune.objective.scoring import IGNORE, pad_right, row_logsumexp, widen

# A wrong mask or wrong positions move the scores; rounding does so by far less than this share of it.
_CLEAR = 0.25


def length(example: Example) -> int:
    """Tokens of the packed sequence. The last token of a candidate is predicted, never fed."""
    return len(example.prompt) + sum(len(option) - 1 for option in example.options)


def pack(examples: Sequence[Example], pad: int) -> Batch:
    """A batch on the CPU; all examples have the same number C of options.

    input_ids, segments, position_ids (B, N): segment 0 is the prompt, j the j-th option, -1 padding.
    targets (B, C, T): ids of the options, IGNORE where there is none. places (B, C, T): where each is predicted,
    counted within the last `keep` positions.
    """
    width = max(map(length, examples))
    keep = width - min(len(example.prompt) for example in examples) + 1
    tokens, segments, positions, targets, places = [], [], [], [], []
    longest = max(len(option) for example in examples for option in example.options)
    for example in examples:
        first = len(example.prompt)
        ids, segment, position = [*example.prompt], [0] * first, [*range(first)]
        for number, option in enumerate(example.options, start=1):
            start = len(ids)
            ids += option[:-1]
            segment += [number] * (len(option) - 1)
            position += range(first, first + len(option) - 1)
            fill = longest - len(option)
            before = [first - 1, *range(start, start + len(option) - 1)]
            places.append([place - (width - keep) for place in before] + [0] * fill)
            targets.append([*option, *[IGNORE] * fill])
        tokens.append(ids)
        segments.append(segment)
        positions.append(position)
    shape = (len(examples), len(examples[0].options), longest)
    return {
        "input_ids": pad_right(tokens, pad),
        "segments": pad_right(segments, -1),
        "position_ids": pad_right(positions, 0),
        "targets": torch.tensor(targets, dtype=torch.int64).view(shape),
        "places": torch.tensor(places, dtype=torch.int64).view(shape),
        "keep": keep,
    }


def scores(model: nn.Module, batch: Batch, dtype: torch.dtype) -> Tensor:
    """Mean log-probabilities (B, C) of the options, fp32 or wider. `dtype`: the model's, for its mask."""
    targets: Tensor = batch["targets"]
    places: Tensor = batch["places"]
    logits = last_logits(
        model,
        batch["keep"],
        input_ids=batch["input_ids"],
        attention_mask=_mask(batch["segments"], dtype),
        position_ids=batch["position_ids"],
    )
    scored = targets != IGNORE
    rows = torch.arange(len(targets), device=targets.device)[:, None, None]
    chosen = widen(logits[rows, places, targets.masked_fill(~scored, 0)])
    total = row_logsumexp(logits).gather(1, places.flatten(1)).view_as(chosen)
    return (chosen - total).masked_fill(~scored, 0).sum(-1) / scored.sum(-1)


def _mask(segments: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, 1, N, N), 0 where a position (third dimension) sees another, else the lowest value of `dtype`.

    Additive, because both ways of attention in transformers take that, in the model's dtype.
    """
    reader, read = segments[:, :, None], segments[:, None, :]
    before = torch.ones(segments.shape[1], segments.shape[1], dtype=torch.bool, device=segments.device).tril()
    hidden = ~(((read == 0) | (read == reader)) & before)
    blank = torch.zeros(hidden.shape, dtype=dtype, device=segments.device)
    return blank.masked_fill(hidden, torch.finfo(dtype).min)[:, None]


def hindrance(model: nn.Module) -> str:
    """Why the model cannot read packed candidates, as far as it shows without a forward; empty where it might."""
    if virtual_tokens(model):
        return "virtual tokens stand before the text, which no mask for each position reaches"
    if not (accepts(model, "attention_mask") and accepts(model, "position_ids")):
        return "the model takes no positions or no mask"
    return ""


def prove(model: nn.Module, examples: Sequence[Example], pad: int, separate: Tensor) -> str:
    """Empty if the model scores packed candidates as it scores each alone; otherwise the reason why not.

    separate (B, C): mean log-probabilities of the candidates, each in a sequence of its own. Three pieces of evidence:
    the scores agree; they would not with other positions; and they do not change by a bit when the other candidates do.
    """
    if reason := hindrance(model):
        return reason
    device, dtype = separate.device, dtype_of(model)
    batch = to_device(pack(examples, pad), device)
    moved = {
        **batch,
        "position_ids": torch.arange(batch["input_ids"].shape[1], device=device).expand_as(batch["segments"]),
    }
    # The tokens of every candidate but the last, which comes after them and so could see them.
    other = (batch["segments"] > 0) & (batch["segments"] < separate.shape[1])
    changed = {**batch, "input_ids": torch.where(other, batch["input_ids"].roll(1, dims=1), batch["input_ids"])}
    try:
        with torch.inference_mode():
            found, wrong, leaked = (scores(model, each, dtype) for each in (batch, moved, changed))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        if is_shortage(error):
            raise
        return f"the model takes no mask of its own for each position ({str(error).strip().splitlines()[0][:120]})"
    if not torch.equal(found[:, -1], leaked[:, -1]):
        return "a candidate sees the others"
    error_of = (found - separate).abs()
    effect = (wrong - separate).abs().amax()
    rounding = 64 * torch.finfo(dtype).eps * (1 + separate.abs())
    if not bool((error_of <= rounding).all()) or float(error_of.amax()) > _CLEAR * float(effect):
        return f"its scores differ by up to {float(error_of.amax()):.3g}"
    return ""


def dtype_of(model: nn.Module) -> torch.dtype:
    """The dtype in which the model computes: that of its first floating-point parameter."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
