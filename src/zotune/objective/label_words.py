"""Classification through the probabilities of label words (MeZO, arXiv 2305.17333, appendix E.4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from zotune.data.template import Template
from zotune.errors import DataError
from zotune.objective.base import Batch, Example, Objective
from zotune.objective.labels import Labels, Value, check_words
from zotune.objective.model_kind import Kind
from zotune.objective.readers import make_reader
from zotune.objective.scoring import best
from zotune.objective.tokens import Ids, TextCoder, report_cut


@final
class LabelWords(Objective):
    """Cross entropy over the scores of the label words that may follow (or fill) a prompt.

    kind "causal": a word is read after the prompt, with a space in between unless the prompt ends in white
    space or the word begins with it. "seq2seq": the prompt goes to the encoder, the word to the decoder.
    "masked": the template holds `{{ mask }}` once, and a word is one token at that place.

    Where every word of a batch is one token, each example is one sequence and its scores are the words'
    logits at one position. Otherwise each candidate is a sequence and its score is the mean log-probability
    of its tokens. For words of one token both give the same loss: a row's scores differ by a constant.

    labels: label values in the order of `words`; None takes the sorted distinct values of the first rows
    encoded, which must be the training rows.
    Prompts that do not fit `max_length` tokens lose tokens at the left, never special or mask tokens.
    """

    by_scores = True

    def __init__(
        self,
        tokenizer: Any,
        template: Template,
        label_column: str,
        words: Sequence[str],
        labels: Sequence[Value] | None,
        kind: Kind,
        max_length: int,
    ) -> None:
        self.kind = kind
        self.max_length = max_length
        self._coder = TextCoder(tokenizer)
        self._reader = make_reader(kind, self._coder)
        self._labels = Labels(label_column, words, labels)
        self._template = template
        self._extra = {"mask": tokenizer.mask_token} if kind == "masked" else {}

    @property
    def words(self) -> tuple[str, ...]:
        """The label words, in the order of the scores."""
        return self._labels.words

    @property
    def mapping(self) -> dict[Value, str]:
        """Label value to label word. Known from the start, or once the training rows are encoded."""
        return self._labels.mapping

    def encode(self, rows: Sequence[dict[str, Any]]) -> list[Example]:
        """Raises DataError: no rows, no such column or label, words that cannot be told apart, no mask."""
        if not rows:
            raise DataError("There are no rows to encode. Remedy: give a file with at least one row.")
        labels = self._labels.indices(rows)
        prompts = self._template.rendered(rows, self._extra)
        bodies = self._coder.encode(prompts)
        examples, cut = [], 0
        for row, (body, options) in enumerate(zip(bodies, self._options(prompts, bodies), strict=True)):
            try:
                prompt, mask, was_cut = self._reader.fit(body, max(map(len, options)), self.max_length)
                if not prompt:
                    raise DataError("the prompt is empty. Remedy: correct the template or the row.")
            except DataError as error:
                raise DataError(f"Row {row + 1}: {error}") from error
            examples.append(Example(prompt, options, labels[row], mask, cut=was_cut))
            cut += was_cut
        report_cut(cut, len(rows), self.max_length)
        return examples

    def lengths(self, examples: Sequence[Example]) -> list[int]:
        return [self._reader.length(example) for example in examples]

    def collate(self, examples: Sequence[Example]) -> Batch:
        single = all(len(option) == 1 for example in examples for option in example.options)
        batch = self._reader.collate_words(examples) if single else self._reader.collate_sequences(examples)
        batch["label"] = torch.tensor([example.label for example in examples], dtype=torch.int64)
        return batch

    def scores(self, model: nn.Module, batch: Batch) -> Tensor:
        """(B, C) fp32 or wider; the highest is the prediction. Comparable within a row only."""
        if "words" in batch:
            return self._reader.word_scores(model, batch)
        return self._reader.sequence_scores(model, batch)

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """(B,) int64: index of the highest score, the first of equals; NONE where it is not finite."""
        return best(self.scores(model, batch))

    def from_scores(self, scores: Tensor, batch: Batch) -> Tensor:
        return functional.cross_entropy(scores, batch["label"], reduction="none")

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.from_scores(self.scores(model, batch), batch)

    def judge(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor | None]:
        scores = self.scores(model, batch)
        return self.from_scores(scores, batch), best(scores) == batch["label"]

    def _options(self, prompts: list[str], bodies: list[Ids]) -> list[tuple[Ids, ...]]:
        """Token ids of all words, for each prompt."""
        columns = []
        for word in self.words:
            following = [self._following(prompt, word) for prompt in prompts]
            columns.append(self._reader.continuations(prompts, bodies, following))
        options: list[tuple[Ids, ...]] = list(zip(*columns, strict=True))
        for tokens in dict.fromkeys(options):
            check_words(self._coder, self.words, tokens)
        return options

    def _following(self, prompt: str, word: str) -> str:
        if self.kind != "causal" or not prompt or prompt[-1].isspace() or word[:1].isspace():
            return word
        return " " + word
