"""The language-model loss on chosen tokens of a sequence: chats, and rows that come as token ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from zotune.errors import ConfigError, DataError
from zotune.objective.base import Batch, Example, Objective
from zotune.objective.model_kind import Kind, last_logits
from zotune.objective.scoring import IGNORE, mean_nll, pad_right
from zotune.objective.tokens import Ids, TextCoder, report_cut

# A row as token ids, and which of them are scored.
Marked = tuple[Ids, tuple[bool, ...]]


@final
class TokenLoss(Objective):
    """Mean negative log-likelihood per scored token of each example, in nats. For causal models.

    mark: a row to token ids (special tokens included) and, for each, whether it is scored. The first token never is:
    nothing predicts it. Over `max_length` tokens a row loses its beginning, but not the tokenizer's first token.
    """

    by_scores = True

    def __init__(
        self, tokenizer: Any, mark: Callable[[Mapping[str, Any], TextCoder], Marked], kind: Kind, max_length: int
    ) -> None:
        if kind != "causal":
            raise ConfigError(
                "Chats and token ids are for causal models. Remedy: give label words, or a prompt and a completion."
            )
        if max_length < 2:
            raise ConfigError(f"max_length {max_length} is too short to predict a token. Remedy: raise it.")
        self.max_length = max_length
        self._mark = mark
        self._coder = TextCoder(tokenizer)

    def encode(self, rows: Sequence[dict[str, Any]]) -> list[Example]:
        """Raises DataError: no rows, a row that cannot be read, a row without a token to score."""
        if not rows:
            raise DataError("There are no rows to encode. Remedy: give a file with at least one row.")
        examples = []
        for number, row in enumerate(rows, start=1):
            try:
                examples.append(self._example(*self._mark(row, self._coder)))
            except DataError as error:
                raise DataError(f"Row {number}: {error}") from error
        report_cut(sum(example.cut for example in examples), len(examples), self.max_length)
        return examples

    def _example(self, ids: Ids, scored: tuple[bool, ...]) -> Example:
        begin = self._coder.split(ids)[0] if self._coder.split(ids)[1] != ids else ()
        last = max((place for place, flag in enumerate(scored) if flag), default=-1)
        # One more token is predicted than is fed; what comes after the last scored one is not read.
        start = max(len(begin), last + 1 - (self.max_length + 1 - len(begin)))
        cut = start > len(begin)
        kept, flags = (*begin, *ids[start : last + 1]), (*scored[: len(begin)], *scored[start : last + 1])
        first = next((place for place, flag in enumerate(flags) if flag and place), None)
        if first is None:
            raise DataError("it has no token to score. Remedy: drop it or give it more text.")
        return Example(kept[:first], (kept[first:],), scored=flags[first:], cut=cut)

    def lengths(self, examples: Sequence[Example]) -> list[int]:
        return [len(example.prompt) + len(example.options[0]) - 1 for example in examples]

    def collate(self, examples: Sequence[Example]) -> Batch:
        inputs = [(*example.prompt, *example.options[0][:-1]) for example in examples]
        width = max(map(len, inputs))
        keep = width - min(len(example.prompt) for example in examples) + 1
        targets = []
        for example in examples:
            before = len(example.prompt) - 1 - (width - keep)
            wanted = [token if flag else IGNORE for token, flag in zip(example.options[0], example.scored, strict=True)]
            targets.append([*[IGNORE] * before, *wanted, *[IGNORE] * (keep - before - len(wanted))])
        return {"input_ids": pad_right(inputs, self._coder.pad), "targets": torch.tensor(targets, dtype=torch.int64)}

    def from_scores(self, scores: Tensor, batch: Batch) -> Tensor:
        return -scores[:, 0]

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        targets: Tensor = batch["targets"]
        return mean_nll(last_logits(model, targets.shape[1], input_ids=batch["input_ids"]), targets)
