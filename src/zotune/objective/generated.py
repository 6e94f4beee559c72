"""The objective on what a model says: minus the score of its own completions (MeZO, arXiv 2305.17333, section 3.3)."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from zotune.data.asked import Ask
from zotune.errors import ConfigError, DataError
from zotune.objective.base import Batch, Example, Objective
from zotune.objective.generate import Completion, Decoding, complete, forced, rehearse
from zotune.objective.model_kind import Kind
from zotune.objective.readers import make_reader
from zotune.objective.reward import Answers, Score
from zotune.objective.scoring import pad_left, pad_right
from zotune.objective.set_metric import SetMetric
from zotune.objective.tokens import TextCoder, report_cut

_log = logging.getLogger(__name__)
# The place of a step in what decides the noise of a sampled evaluation: the same before and after a training.
_NO_STEP = 2**32


@final
class Generated(Objective):
    """Minus the score of what the model says after each prompt; minus one number for the batch where it is a SetMetric.

    ask: from a row to its prompt. A score that does not apply to an example (None) counts as 0 in its loss, and is left
    out of an evaluation's mean. Logits that are NaN give a loss of NaN. A batch's "step" (0 without) decides the noise
    of sampled completions and stands in messages.

    Prompts that do not fit `max_length` together with `decoding.max_new_tokens` lose tokens at the left.
    """

    one_forward = False
    goes_on = True

    def __init__(
        self, tokenizer: Any, ask: Ask, kind: Kind, max_length: int, decoding: Decoding, score: Score | SetMetric
    ) -> None:
        if kind == "masked":
            raise ConfigError("A masked model generates no text. Remedy: use a causal or encoder-decoder model.")
        self.kind, self.max_length, self.decoding, self.score = kind, max_length, decoding, score
        self.set_level = isinstance(score, SetMetric)
        self.one_at_a_time = "one score is that of a whole set of completions" if self.set_level else ""
        self.metric = "metric" if isinstance(score, SetMetric) else score.metric
        self.says = f"{score.name}, {decoding.says()}"
        self.parts = () if isinstance(score, SetMetric) else score.parts
        self._ask = ask
        self._coder = TextCoder(tokenizer)
        self._reader = make_reader(kind, self._coder)

    def encode(self, rows: Sequence[dict[str, Any]]) -> list[Example]:
        """Raises DataError: no rows, a row without prompt or reference. ConfigError: what the score lacks."""
        if not rows:
            raise DataError("There are no rows to encode. Remedy: give a file with at least one row.")
        asked = []
        for number, row in enumerate(rows, start=1):
            try:
                asked.append(self._ask(row))
            except DataError as error:
                raise DataError(f"Row {number}: {error}") from error
        self.score.check(list(asked[0].columns), bool(asked[0].references))
        prompts = [each.prompt for each in asked]
        bodies = self._coder.encode(prompts)
        right = [each.references[0] if each.references else "" for each in asked]
        said = self._reader.continuations(prompts, bodies, [_spaced(p, r) for p, r in zip(prompts, right, strict=True)])
        examples = []
        for number, (each, body, option) in enumerate(zip(asked, bodies, said, strict=True)):
            prompt, _, cut = self._reader.fit(body, self.decoding.max_new_tokens + 1, self.max_length)
            if not prompt:
                raise DataError(f"Row {number + 1}: the prompt is empty. Remedy: correct the template or the row.")
            examples.append(Example(prompt, (option,), answers=each.references, cut=cut, number=number, asked=each))
        report_cut(sum(example.cut for example in examples), len(examples), self.max_length)
        return examples

    def lengths(self, examples: Sequence[Example]) -> list[int]:
        return [len(example.prompt) for example in examples]

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Prompts padded on the left, where a decoder's next token is the last; on the right for an encoder."""
        pad = pad_left if self.kind == "causal" else pad_right
        return {
            "read": pad([example.prompt for example in examples], self._coder.pad),
            "read_mask": pad([[1] * len(example.prompt) for example in examples], 0),
            # A batch may be cut or repeated along its tensors: each row says which example it is.
            "place": torch.arange(len(examples)),
            "examples": tuple(examples),
        }

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        said, examples = self._complete(model, batch, batch.get("step", 0))
        where = f"at step {batch.get('step', 0)}"
        if isinstance(self.score, SetMetric):
            finite = all(each.finite for each in said)
            loss = -self.score(_answers(said, examples, where)) if finite else torch.nan
            return torch.tensor(loss, dtype=torch.float64)
        losses = torch.empty(len(said), dtype=torch.float64)
        copies = _copies(batch["place"].tolist())
        # A function sees the completions of one point at a time, as it does where points come one by one.
        for copy in sorted(set(copies)):
            rows = [row for row, own in enumerate(copies) if own == copy]
            own = [said[row] for row in rows]
            scores = self.score(_answers(own, [examples[row] for row in rows], where))
            self._warn(scores)
            losses[rows] = _losses(own, scores)
        return losses

    def witness(self, model: nn.Module, batch: Batch, first: int) -> Tensor:
        """Log-probabilities of tokens that differ between copies, as completions do: scores can be equal by chance."""
        places = batch["place"].tolist()
        numbers = [(place, first + copy) for place, copy in zip(places, _copies(places), strict=True)]
        return forced(model, self._coder, batch["read"], batch["read_mask"], numbers, self.decoding.max_new_tokens)

    def rehearse(self, model: nn.Module, batch: Batch, times: Callable[[float], None]) -> None:
        rehearse(model, batch["read"], batch["read_mask"], self.decoding.max_new_tokens, times)

    def judge(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Sequence[Any]]:
        """Losses (B,) and the scores that apply (several: each example's sum, and they); for a set none, and its
        completions with their examples.
        """
        said, examples = self._complete(model, batch, _NO_STEP)
        if isinstance(self.score, SetMetric):
            return torch.empty(0), list(zip(said, examples, strict=True))
        rows = self.score.split(_answers(said, examples, "in an evaluation"))
        applying = [row for row in rows if row[0] is not None]
        return _losses(said, [row[0] for row in rows]), applying if self.parts else [row[0] for row in applying]

    def over_set(self, found: Sequence[tuple[Completion, Example]]) -> float:
        """The metric of a whole set, from what `judge` found of its batches. NaN where logits were."""
        assert isinstance(self.score, SetMetric)
        said, examples = [each for each, _ in found], [example for _, example in found]
        if not all(each.finite for each in said):
            return torch.nan
        return self.score(_answers(said, examples, "in an evaluation"))

    def _complete(self, model: nn.Module, batch: Batch, step: int) -> tuple[list[Completion], list[Example]]:
        examples = [batch["examples"][place] for place in batch["place"].tolist()]
        draw = [(step, example.number) for example in examples]
        said = complete(model, self._coder, batch["read"], batch["read_mask"], self.decoding, draw)
        return said, examples

    def _warn(self, scores: Sequence[float | None]) -> None:
        if all(score is None for score in scores):
            _log.warning("%s applies to no example of a batch: that step has no slope.", self.score.name)


def _copies(places: Sequence[int]) -> list[int]:
    """For each row how often its example stands before it."""
    seen: Counter[int] = Counter()
    found = []
    for place in places:
        found.append(seen[place])
        seen[place] += 1
    return found


def _answers(said: Sequence[Completion], examples: Sequence[Example], where: str) -> Answers:
    asked = [example.asked for example in examples]
    chats = [isinstance(each.shown, list) for each in asked]
    return Answers(
        prompts=[each.shown for each in asked],
        completions=[
            [{"role": "assistant", "content": each.text}] if chat else each.text
            for each, chat in zip(said, chats, strict=True)
        ],
        texts=[each.text for each in said],
        ids=[list(each.ids) for each in said],
        references=[each.references for each in asked],
        columns={name: [each.columns.get(name) for each in asked] for name in asked[0].columns},
        where=where,
    )


def _losses(said: Sequence[Completion], scores: Sequence[float | None]) -> Tensor:
    """(B,) fp64: minus the scores."""
    losses = [-(score or 0.0) if each.finite else torch.nan for each, score in zip(said, scores, strict=True)]
    return torch.tensor(losses, dtype=torch.float64)


def _spaced(prompt: str, text: str) -> str:
    """What is right as it would follow the prompt: with a space between, unless one is there."""
    return text if not text or not prompt or prompt[-1].isspace() or text[0].isspace() else f" {text}"
