"""Scores of completions by name: `f1`, `exact_match`, `accuracy`, `regex:PATTERN`, `json_valid`, `length:N`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import final

from zotune.errors import ConfigError
from zotune.objective.reward import COMPARE, Answers, Compared, Score, Scored


@final
class Judged(Score):
    """A number for each completion, of its text alone."""

    metric = "reward"

    def __init__(self, name: str, judge: Callable[[str], float]) -> None:
        self.name, self._judge = name, judge

    def __call__(self, answers: Answers) -> Scored:
        return [self._judge(text) for text in answers.texts]


def is_named(name: str) -> bool:
    """Whether a reward is one of these, and no function to import."""
    return name in COMPARE or name.partition(":")[0] in _JUDGED


def named(name: str) -> Score:
    """The score of this name. Raises ConfigError for what stands behind its colon."""
    if name in COMPARE:
        return Compared(name)
    kind, _, argument = name.partition(":")
    return Judged(name, _JUDGED[kind](name, argument))


def _regex(name: str, argument: str) -> Callable[[str], float]:
    """1 where the pattern is found in the completion, else 0."""
    try:
        pattern = re.compile(argument)
    except re.error as error:
        raise ConfigError(f"reward {name!r} is no pattern: {error}. Remedy: correct it.") from None
    if not argument:
        raise ConfigError("reward regex has no pattern. Remedy: write regex:PATTERN.")
    return lambda text: float(pattern.search(text) is not None)


def _json_valid(name: str, argument: str) -> Callable[[str], float]:
    """1 where the whole completion is JSON, else 0."""
    if argument:
        raise ConfigError(f"reward {name!r}: json_valid takes nothing behind a colon. Remedy: write json_valid.")

    def valid(text: str) -> float:
        try:
            json.loads(text)
        except (ValueError, RecursionError):
            return 0.0
        return 1.0

    return valid


def _length(name: str, argument: str) -> Callable[[str], float]:
    """1 for a completion of so many words, less by the share that is missing or too much, not below 0."""
    if not argument.isdecimal() or int(argument) < 1:
        raise ConfigError(f"reward {name!r} names no number of words. Remedy: write length:20.")
    wanted = int(argument)
    return lambda text: max(0.0, 1 - abs(len(text.split()) - wanted) / wanted)


_JUDGED: dict[str, Callable[[str, str], Callable[[str], float]]] = {
    "regex": _regex,
    "json_valid": _json_valid,
    "length": _length,
}
