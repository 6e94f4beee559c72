"""The language-model loss: all tokens of a text, or the completion after a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

from torch import Tensor, nn

from zotune.data.template import Template
from zotune.errors import ConfigError, DataError
from zotune.objective.base import Batch, Example, Objective
from zotune.objective.model_kind import Kind
from zotune.objective.readers import make_reader
from zotune.objective.tokens import Ids, TextCoder, report_cut


@final
class LanguageModel(Objective):
    """Mean negative log-likelihood per scored token of each example, in nats.

    source: the name of a text column, all of whose tokens are scored (the first only if the tokenizer puts
    a token before it), or a pair of a prompt template and a completion column, whose completion alone is
    scored. Prompt and completion are joined as they are: a space in between must be in one of them.

    Over `max_length` tokens a text loses its end, a prompt its beginning, and a completion its end only
    where it does not fit by itself. What the tokenizer ends a text with (T5's end token) is scored too;
    `end` adds the tokenizer's end-of-sequence token where it is not already there.
    Each example counts the same, however long it is.
    """

    by_scores = True

    def __init__(
        self,
        tokenizer: Any,
        source: str | tuple[Template, str],
        max_length: int,
        kind: Kind,
        end: bool = False,
    ) -> None:
        if kind == "masked":
            raise ConfigError("A masked model has no language-model loss. Remedy: give label words.")
        if kind == "seq2seq" and isinstance(source, str):
            raise ConfigError(
                "An encoder-decoder model needs a prompt and a completion. Remedy: name a completion column."
            )
        if max_length < 2:
            raise ConfigError(f"max_length {max_length} is too short to predict a token. Remedy: raise it.")
        self.kind = kind
        self.max_length = max_length
        self._source = source
        self._coder = TextCoder(tokenizer)
        self._reader = make_reader(kind, self._coder)
        self._end = self._coder.suffix
        if end and not self._end:
            if getattr(tokenizer, "eos_token_id", None) is None:
                raise ConfigError("The tokenizer has no end-of-sequence token. Remedy: set end to false.")
            self._end = (int(tokenizer.eos_token_id),)

    def encode(self, rows: Sequence[dict[str, Any]]) -> list[Example]:
        """Raises DataError: no rows, a column missing or not text, a row without a token to score."""
        if not rows:
            raise DataError("There are no rows to encode. Remedy: give a file with at least one row.")
        pairs = self._texts(rows) if isinstance(self._source, str) else self._completions(rows, *self._source)
        examples = []
        for number, (prompt, scored, cut) in enumerate(pairs, start=1):
            if not scored:
                raise DataError(f"Row {number} has no token to score. Remedy: drop it or give it more text.")
            if not prompt:
                raise DataError(f"Row {number}: the prompt is empty. Remedy: correct the template or the row.")
            examples.append(Example(prompt, (scored,), cut=cut))
        report_cut(sum(cut for _, _, cut in pairs), len(rows), self.max_length)
        return examples

    def lengths(self, examples: Sequence[Example]) -> list[int]:
        return [self._reader.length(example) for example in examples]

    def collate(self, examples: Sequence[Example]) -> Batch:
        return self._reader.collate_sequences(examples)

    def from_scores(self, scores: Tensor, batch: Batch) -> Tensor:
        return -scores[:, 0]

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.from_scores(self._reader.sequence_scores(model, batch), batch)

    def _texts(self, rows: Sequence[Mapping[str, Any]]) -> list[tuple[Ids, Ids, bool]]:
        """The first token is read, the others are scored."""
        assert isinstance(self._source, str)
        found = []
        for body in self._coder.encode(_column(rows, self._source)):
            begin, body = self._coder.split(body)
            whole = (*begin, *self._ended(body))
            # One more token is predicted than is fed.
            kept = whole[: self.max_length + 1]
            read = max(1, len(begin))
            found.append((kept[:read], kept[read:], len(kept) < len(whole)))
        return found

    def _completions(
        self, rows: Sequence[Mapping[str, Any]], template: Template, column: str
    ) -> list[tuple[Ids, Ids, bool]]:
        completions = _column(rows, column)
        prompts = template.rendered(rows)
        bodies = self._coder.encode(prompts)
        found = []
        continuations = self._reader.continuations(prompts, bodies, completions)
        for body, scored in zip(bodies, continuations, strict=True):
            scored = self._ended(scored) if scored else scored
            # A decoder begins with these alone (BART); elsewhere one token of the prompt must stay behind them.
            kept = scored[: self.max_length - len(self._coder.prefix)]
            prompt, _, cut = self._reader.fit(body, len(kept), self.max_length)
            found.append((prompt, kept, cut or len(kept) < len(scored)))
        return found

    def _ended(self, ids: Ids) -> Ids:
        return ids if ids[len(ids) - len(self._end) :] == self._end else (*ids, *self._end)


def _column(rows: Sequence[Mapping[str, Any]], column: str) -> list[str]:
    for number, row in enumerate(rows, start=1):
        if column not in row:
            raise DataError(
                f"Row {number} has no column {column!r}; "
                f"columns found: {', '.join(map(str, row)) or 'none'}. "
                "Remedy: --text-column or --completion-column with one of them."
            )
        if not isinstance(row[column], str):
            raise DataError(
                f"Row {number}: column {column!r} holds {row[column]!r}, not text. Remedy: correct the row."
            )
    return [row[column] for row in rows]
