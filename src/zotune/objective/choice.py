"""How candidates are trained and judged: which loss, which score, and how an answer is generated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, final

from zotune.objective.generate import Decoding

# Tokens that a generated answer may have (MeZO).
ANSWER_TOKENS = 50


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """How candidates are trained and judged.

    loss: "options" is the cross entropy over the candidates' scores, "target" the mean negative log-likelihood per
    token of the right candidate alone. metric: "accuracy" of the best candidate, "f1" of a generated answer.
    calibrated: judge a candidate by how much likelier the prompt makes it, sum log p(candidate | prompt) - sum log
    p(candidate | blank) (surface form competition, arXiv 2104.08315). limits: the most tokens of a column that are
    read. cuts: whether a candidate that does not fit by itself loses its end, as long answers do; else it is refused.
    by_sum: judge a candidate by the sum of its tokens' log-probabilities, not their mean; normed: and also by that sum
    per character of the candidate. These are `acc` and `acc_norm` of the lm-evaluation-harness. decoding: how an answer
    is generated; None is MeZO's way, at most `ANSWER_TOKENS` up to a line end.
    """

    loss: Literal["options", "target"] = "options"
    metric: Literal["accuracy", "f1"] = "accuracy"
    calibrated: bool = False
    limits: Mapping[str, int] = field(default_factory=dict)
    cuts: bool = False
    by_sum: bool = False
    normed: bool = False
    decoding: Decoding | None = None

    @property
    def answer_tokens(self) -> int:
        """The most that a generated answer may have, 0 where none is generated."""
        if self.metric != "f1":
            return 0
        return ANSWER_TOKENS if self.decoding is None else self.decoding.max_new_tokens
