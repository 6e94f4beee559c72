"""Choosing between candidate texts by their likelihood (MeZO, arXiv 2305.17333, appendix E.4)."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from zotune.data.rendered import MASK, Render, Rendered
from zotune.errors import ConfigError, DataError
from zotune.objective import packed
from zotune.objective.base import Batch, Example, Objective, to_device
from zotune.objective.choice import ANSWER_TOKENS, Choice
from zotune.objective.generate import complete
from zotune.objective.metrics import answer_f1, generate
from zotune.objective.model_kind import Kind
from zotune.objective.readers import make_reader
from zotune.objective.scoring import best, hits, pad_left, pad_right
from zotune.objective.tokens import Ids, TextCoder, report_cut

_log = logging.getLogger(__name__)


@final
class OptionLikelihood(Objective):
    """Candidates of any number and length per row; the score of one is the mean log-probability of its tokens.

    render: a pure function from a row to prompt, candidates and what is right.

    Where every candidate of a batch is one token, an example is one sequence and the scores are logits at one position.
    Otherwise all candidates of an example share one sequence if the model is shown to read it so (`packed.py`), and are
    a sequence each if not. All three give the same losses. Each example counts the same in a "target" loss, where MeZO
    averages over all tokens of a batch.

    Prompts that do not fit `max_length` tokens together with their longest candidate lose tokens at the left, never
    special or mask tokens.
    """

    by_scores = True

    def __init__(
        self, tokenizer: Any, render: Render, kind: Kind, max_length: int, choice: Choice | None = None
    ) -> None:
        self.choice = Choice() if choice is None else choice
        if kind == "masked" and (self.choice.loss != "options" or self.choice.metric != "accuracy"):
            raise ConfigError("A masked model cannot score or generate texts. Remedy: use a causal model.")
        self.kind = kind
        self.max_length = max_length
        self._render = render
        self._coder = TextCoder(tokenizer)
        self._reader = make_reader(kind, self._coder)
        self._whole = self.choice.loss == "options"  # whether batches hold all candidates
        self._packed: torch.dtype | None = None  # the model's dtype where candidates may share a sequence
        self._exact = False  # whether the scores of single tokens are log-probabilities, not logits

    def encode(self, rows: Sequence[dict[str, Any]]) -> list[Example]:
        """Raises DataError: no rows, a row that cannot be rendered, candidates that cannot be told apart, no room."""
        if not rows:
            raise DataError("There are no rows to encode. Remedy: give a file with at least one row.")
        rendered = [self._rendered(number, row) for number, row in enumerate(rows, start=1)]
        prompts = [each.prompt for each in rendered]
        bodies = self._coder.encode(prompts)
        options = self._options(rendered, bodies)
        examples = []
        for number, (each, body, ids) in enumerate(zip(rendered, bodies, options, strict=True), start=1):
            try:
                examples.append(self._example(each, body, ids))
            except DataError as error:
                raise DataError(f"Row {number}: {error}") from error
        report_cut(sum(example.cut for example in examples), len(examples), self.max_length)
        return examples

    def _rendered(self, number: int, row: dict[str, Any]) -> Rendered:
        limits = self.choice.limits
        short = {
            name: self._coder.head(value, limits[name]) if name in limits and isinstance(value, str) else value
            for name, value in row.items()
        }
        try:
            found = self._render(short)
        except DataError as error:
            raise DataError(f"Row {number}: {error}") from error
        if self.kind == "masked":
            return replace(found, prompt=found.prompt.replace(MASK, str(self._coder.tokenizer.mask_token)))
        return found

    def _options(self, rendered: Sequence[Rendered], bodies: Sequence[Ids]) -> list[tuple[Ids, ...]]:
        """Token ids of the candidates of each row, as they read after its prompt."""
        counts = [len(each.candidates) for each in rendered]
        following = [text for each in rendered for text in each.candidates]
        if self.kind == "seq2seq":
            following = [text.strip() for text in following]
        prompts = [each.prompt for each, count in zip(rendered, counts, strict=True) for _ in range(count)]
        repeated = [body for body, count in zip(bodies, counts, strict=True) for _ in range(count)]
        flat = iter(self._reader.continuations(prompts, repeated, following))
        return [tuple(next(flat) for _ in range(count)) for count in counts]

    def _example(self, rendered: Rendered, body: Ids, options: tuple[Ids, ...]) -> Example:
        # One token of the prompt must stay behind the special tokens.
        room = max(1, self.max_length - len(self._coder.prefix))
        kept = tuple(option[:room] for option in options) if self.choice.cuts else options
        _check(self._coder, rendered.candidates, kept)
        longest = max(*map(len, kept), self.choice.answer_tokens + 1)
        prompt, mask, cut = self._reader.fit(body, longest, self.max_length)
        if not prompt:
            raise DataError("the prompt is empty. Remedy: correct the row.")
        blank = self._blank(rendered) if self.choice.calibrated else ()
        right, cut = rendered.right, cut or kept != options
        found = Example(prompt, kept, right[0], mask, right, cut=cut, sizes=rendered.sizes)
        return replace(found, blank=blank, answers=rendered.answers)

    def _blank(self, rendered: Rendered) -> Ids:
        if rendered.blank is None:
            raise DataError("this task has no prompt without content. Remedy: leave --calibrate out.")
        ids = self._reader.fit(self._coder.encode([rendered.blank])[0], 1, self.max_length)[0]
        start = [getattr(self._coder.tokenizer, name, None) for name in ("bos_token_id", "eos_token_id")]
        # A first token needs something before it, and many tokenizers put nothing there by themselves.
        return ids or tuple(int(token) for token in start if token is not None)[:1]

    def lengths(self, examples: Sequence[Example]) -> list[int]:
        if self.kind != "causal":
            return [self._reader.length(example) for example in examples]
        return [packed.length(example if self._whole else _target(example)) for example in examples]

    def prepare(self, model: nn.Module, examples: Sequence[Example]) -> None:
        """Show whether candidates may share a sequence, on the longest examples that have several candidates.

        A model without weights, to plan with, is believed: most models do.
        """
        several = [e for e in examples if len(e.options) > 1 and max(map(len, e.options)) > 1]
        if self.kind != "causal" or not several:
            return
        chosen = _filled(sorted(several, key=packed.length)[-2:])
        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        if device.type == "meta":
            self._packed = None if packed.hindrance(model) else packed.dtype_of(model)
            return
        with torch.inference_mode():
            separate = self._reader.sequence_scores(model, to_device(self._reader.collate_sequences(chosen), device))
        reason = packed.prove(model, chosen, self._coder.pad, separate)
        self._packed = None if reason else packed.dtype_of(model)
        if reason:
            _log.info("each candidate is a sequence of its own: %s", reason)

    def for_evaluation(self) -> OptionLikelihood:
        other = copy.copy(self)
        other._whole = True
        other.metric = self.choice.metric
        other.one_forward = self.choice.metric == "accuracy" and not self.choice.calibrated
        other._exact = self.choice.normed
        other.parts = ("acc_norm",) if self.choice.normed else ()
        return other

    def collate(self, examples: Sequence[Example]) -> Batch:
        if not self._whole:
            examples = [_target(example) for example in examples]
        filled = _filled(examples)
        batch = self._form(filled)
        count = len(filled[0].options)
        batch["label"] = torch.tensor([example.label for example in examples], dtype=torch.int64)
        batch["right"] = torch.tensor([[i in (e.right or (e.label,)) for i in range(count)] for e in examples])
        batch["present"] = torch.tensor([[i < len(example.options) for i in range(count)] for example in examples])
        if self._whole and self.choice.calibrated:
            blanks = [replace(example, prompt=example.blank) for example in filled]
            batch |= {f"blank_{name}": value for name, value in self._form(blanks).items()}
        if self._whole and (self.choice.calibrated or self.choice.by_sum):
            batch["option_lengths"] = torch.tensor([[len(option) for option in e.options] for e in filled])
        if self._exact:
            batch["sizes"] = torch.tensor([[*e.sizes, *[1] * (count - len(e.sizes))] for e in examples])
        if self._whole and self.choice.metric == "f1":
            batch |= self._to_generate(examples)
        return batch

    def _form(self, examples: Sequence[Example]) -> Batch:
        if self.choice.loss == "options" and all(len(option) == 1 for e in examples for option in e.options):
            return self._reader.collate_words(examples)
        if self._packed is not None and len(examples[0].options) > 1:
            return packed.pack(examples, self._coder.pad)
        return self._reader.collate_sequences(examples)

    def _to_generate(self, examples: Sequence[Example]) -> Batch:
        """Prompts padded on the left, where a decoder's next token is the last; on the right for an encoder."""
        pad = pad_left if self.kind == "causal" else pad_right
        read = pad([example.prompt for example in examples], self._coder.pad)
        mask = pad([[1] * len(example.prompt) for example in examples], 0)
        return {"read": read, "read_mask": mask, "answers": [example.answers for example in examples]}

    def scores(self, model: nn.Module, batch: Batch) -> Tensor:
        """(B, C) fp32 or wider, -inf where an example has no such candidate; comparable within a row only."""
        return _present(self._scores(model, batch), batch)

    def _scores(self, model: nn.Module, batch: Batch) -> Tensor:
        if "words" in batch:
            return self._reader.word_scores(model, batch, self._exact)
        if "segments" in batch:
            assert self._packed is not None
            return packed.scores(model, batch, self._packed)
        return self._reader.sequence_scores(model, batch)

    def from_scores(self, scores: Tensor, batch: Batch) -> Tensor:
        return self._losses(_present(scores, batch), batch)

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.from_scores(self._scores(model, batch), batch)

    def _losses(self, scores: Tensor, batch: Batch) -> Tensor:
        if self.choice.loss == "options":
            return functional.cross_entropy(scores, batch["label"], reduction="none")
        return -scores.gather(1, batch["label"][:, None])[:, 0]

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """(B,) int64: the candidate that `judge` takes for the model's choice; NONE where no score is the highest."""
        return best(self._judged(model, batch, self.scores(model, batch)))

    def judge(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor | None]:
        scores = self.scores(model, batch)
        losses = self._losses(scores, batch)
        if not self._whole:
            return losses, None
        if self.choice.metric == "f1":
            return losses, torch.tensor(self._answered(model, batch))
        judged = self._judged(model, batch, scores)
        right = hits(batch["right"], best(judged))
        if "sizes" not in batch:
            return losses, right
        return losses, torch.stack([right, hits(batch["right"], best(judged / batch["sizes"]))], dim=1)

    def _answered(self, model: nn.Module, batch: Batch) -> list[float]:
        """The token F1 of what the model says after each prompt; NaN where its logits are."""
        read, seen, decoding = batch["read"], batch["read_mask"], self.choice.decoding
        if decoding is None:
            said = generate(model, self._coder, read, seen, ANSWER_TOKENS)
            finite = [True] * len(said)
        else:
            found = complete(model, self._coder, read, seen, decoding, [()] * len(read))
            said, finite = [each.text for each in found], [each.finite for each in found]
        each = zip(said, finite, batch["answers"], strict=True)
        return [answer_f1(text, answers) if sound else math.nan for text, sound, answers in each]

    def _judged(self, model: nn.Module, batch: Batch, scores: Tensor) -> Tensor:
        """(B, C): the highest is the choice. The scores as they are, or as sums: plain or calibrated."""
        if not self.choice.calibrated and not self.choice.by_sum:
            return scores
        # Means to sums. Logits of single words have length 1, and their unknown constants are those of a row.
        lengths: Tensor = batch["option_lengths"]
        if not self.choice.calibrated:
            return scores * lengths
        blank = self._scores(model, {name[6:]: value for name, value in batch.items() if name.startswith("blank_")})
        return (scores - blank) * lengths


def _present(scores: Tensor, batch: Batch) -> Tensor:
    return scores.masked_fill(~batch["present"], -torch.inf)


def _target(example: Example) -> Example:
    """The example with its right candidate alone."""
    return replace(example, options=(example.options[example.label],), label=0, right=(0,))


def _filled(examples: Sequence[Example]) -> list[Example]:
    """All examples with as many options as the one that has most; the first option stands for those that lack."""
    most = max(len(example.options) for example in examples)
    return [replace(e, options=e.options + e.options[:1] * (most - len(e.options))) for e in examples]


def _check(coder: TextCoder, candidates: Sequence[str], options: Sequence[Ids]) -> None:
    """Raises DataError for a candidate without tokens, of unknown tokens, or with another candidate's tokens."""
    unknown = getattr(coder.tokenizer, "unk_token_id", None)
    seen: dict[Ids, str] = {}
    for text, ids in zip(candidates, options, strict=True):
        if not ids:
            raise DataError(f"candidate {text!r} gives no tokens. Remedy: correct it.")
        if unknown is not None and set(ids) == {unknown}:
            raise DataError(f"candidate {text!r} is not in the vocabulary. Remedy: choose another model or wording.")
        if ids in seen:
            raise DataError(
                f"candidates {seen[ids]!r} and {text!r} have the same tokens {list(ids)}. "
                "Remedy: choose candidates that the tokenizer tells apart."
            )
        seen[ids] = text
