"""Scores of completions, one for each: token F1, exact match, and reward functions with TRL's signature."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, final

from zotune.errors import ConfigError, DataError, FunctionError
from zotune.objective.functions import REMEDY, Named, call, check_takes
from zotune.objective.metrics import answer_exact, answer_f1, answer_same

Scored = list[float | None]


@final
@dataclass(frozen=True, slots=True)
class Answers:
    """The completions of a batch, example by example, and what is known of each.

    prompts: texts, or lists of messages; completions are then messages too. texts: the same completions as text.
    columns: the rows, turned into a list for each column. where: such as "at step 3", for messages.
    """

    prompts: list[Any]
    completions: list[Any]
    texts: list[str]
    ids: list[list[int]]
    references: list[tuple[str, ...]]
    columns: Mapping[str, list[Any]]
    where: str


class Score(ABC):
    """A number for each completion; larger is better. None where the score does not apply to the example."""

    name: str
    metric: str
    """What its mean is called in an evaluation."""
    parts: tuple[str, ...] = ()
    """The names of several scores that it is made of."""

    @abstractmethod
    def __call__(self, answers: Answers) -> Scored:
        """One number for each example. Raises FunctionError."""

    def split(self, answers: Answers) -> list[Scored]:
        """For each example its score and, behind it, those of `parts`."""
        return [[score] for score in self(answers)]

    def check(self, columns: Sequence[str], referenced: bool) -> None:  # noqa: B027 - a function may need nothing
        """Raises ConfigError or DataError when rows of these columns cannot be scored."""


@final
class Compared(Score):
    """The completion against the row's references, 0..1: "f1" (token F1) or "exact_match" as SQuAD has them, or
    "accuracy", to the letter.
    """

    def __init__(self, name: str) -> None:
        if name not in COMPARE:
            raise ConfigError(f"unknown score {name!r}. Remedy: use one of {', '.join(COMPARE)}.")
        self.name = name
        # An accuracy is that of a choice between candidates.
        self.metric = "reward" if name == "accuracy" else name

    def __call__(self, answers: Answers) -> Scored:
        compare = COMPARE[self.name]
        return [compare(said, right) for said, right in zip(answers.texts, answers.references, strict=True)]

    def check(self, columns: Sequence[str], referenced: bool) -> None:
        if not referenced:
            raise DataError(
                f"{self.name} compares with what is right, and the rows have no column 'completion'; columns found: "
                f"{', '.join(columns) or 'none'}. Remedy: name the column with --completion-column."
            )


COMPARE = {"f1": answer_f1, "exact_match": answer_exact, "accuracy": answer_same}


@final
class Reward(Score):
    """A function `reward(prompts, completions, **columns) -> list[float | None]`, as TRL's GRPO calls it.

    It is called by name with prompts, completions, completion_ids and every column of the rows, each a list, and gets
    those that its signature takes. None for an example: the function does not apply to it. It may be `async`.
    """

    metric = "reward"

    def __init__(self, function: Named, seconds: float) -> None:
        self.name, self._function, self._seconds = function.short, function, seconds

    def check(self, columns: Sequence[str], referenced: bool) -> None:
        check_takes(self._function, ["prompts", "completions", "completion_ids", *columns])

    def __call__(self, answers: Answers) -> Scored:
        own = {"prompts": answers.prompts, "completions": answers.completions, "completion_ids": answers.ids}
        returned = call(self._function, self._seconds, answers.where, {**answers.columns, **own})
        found = listed(returned)
        if found is None:
            raise self._refused(f"returned {_shown(returned)}, not a list of numbers", answers.where)
        if len(found) != len(answers.texts):
            raise self._refused(f"returned {len(found)} numbers for {len(answers.texts)} completions", answers.where)
        scores: Scored = []
        for place, value in enumerate(found):
            if value is not None and number(value) is None:
                what = f"returned {_shown(value)} for the completion {answers.texts[place][:60]!r}, not a finite number"
                raise self._refused(what, answers.where)
            scores.append(None if value is None else number(value))
        return scores

    def _refused(self, what: str, where: str) -> FunctionError:
        return FunctionError(f"{self._function.name} {what}, {where}. {REMEDY}")


@final
class Weighted(Score):
    """The sum of several scores with their weights; what does not apply to an example is left out of its sum."""

    def __init__(self, scores: Sequence[Score], weights: Sequence[float] | None = None) -> None:
        if not scores:
            raise ConfigError("no score was given. Remedy: give at least one reward function.")
        self.weights = [1.0] * len(scores) if weights is None else list(weights)
        if len(self.weights) != len(scores):
            raise ConfigError(
                f"{len(self.weights)} weights for {len(scores)} rewards. Remedy: give one weight for each."
            )
        self.scores = list(scores)
        plain = len(scores) == 1 and self.weights == [1.0]
        self.metric = scores[0].metric if plain else "reward"
        parts = [score.name for score in scores]
        self.name = parts[0] if plain else " + ".join(f"{w:g} {n}" for w, n in zip(self.weights, parts, strict=True))
        self.parts = _told_apart(scores) if len(parts) > 1 else ()

    def __call__(self, answers: Answers) -> Scored:
        return [row[0] for row in self.split(answers)]

    def split(self, answers: Answers) -> list[Scored]:
        columns = [score(answers) for score in self.scores]
        return [[_summed(row, self.weights), *row] for row in zip(*columns, strict=True)]

    def check(self, columns: Sequence[str], referenced: bool) -> None:
        for score in self.scores:
            score.check(columns, referenced)


def _told_apart(scores: Sequence[Score]) -> tuple[str, ...]:
    """Names of functions without their files, unless two would be the same."""
    names = [score.name for score in scores]
    plain = [s.name.rpartition(":")[2].rpartition(".")[2] if isinstance(s, Reward) else s.name for s in scores]
    return tuple(names if len(set(plain)) < len(plain) else plain)


def _summed(values: Sequence[float | None], weights: Sequence[float]) -> float | None:
    """The weighted sum of those that apply, None where none does."""
    parts = [weight * value for value, weight in zip(values, weights, strict=True) if value is not None]
    return math.fsum(parts) if parts else None


def number(value: Any) -> float | None:
    """A finite number of any kind (a truth value counts as 0 or 1, a tensor of one element as it), else None."""
    if not isinstance(value, Real) and callable(getattr(value, "item", None)) and getattr(value, "ndim", 0) == 0:
        value = value.item()
    if not isinstance(value, Real):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def listed(value: Any) -> list[Any] | None:
    """A list, a tuple, an array or a tensor of one dimension as a list, else None."""
    if callable(getattr(value, "tolist", None)) and getattr(value, "ndim", 0) == 1:
        value = value.tolist()
    return list(value) if isinstance(value, list | tuple) else None


def _shown(value: Any) -> str:
    return f"{str(value)[:60]!r} ({type(value).__name__})" if not isinstance(value, float) else str(value)
