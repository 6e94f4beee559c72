"""Scores of completions: comparisons, and reward functions as TRL calls them, good ones and bad ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from zotune.errors import ConfigError, DataError, FunctionError
from zotune.objective.functions import Named, given
from zotune.objective.reward import Answers, Compared, Reward, Weighted


def answers(*texts: str, **columns: list[Any]) -> Answers:
    """Answers to as many prompts; what is right is always "a great film"."""
    return Answers(
        prompts=[f"p{number}" for number in range(len(texts))],
        completions=list(texts),
        texts=list(texts),
        ids=[[number] for number in range(len(texts))],
        references=[("a great film", "fine")] * len(texts),
        columns=columns,
        where="at step 4",
    )


def reward(function: Callable[..., Any], seconds: float = 5) -> Reward:
    """The reward of a function."""
    return Reward(given(function), seconds)


def test_comparisons() -> None:
    """Case, punctuation and articles do not count; F1 shares, exact match does not."""
    said = answers("Great film!", "a great plot", "FINE", "")
    assert Compared("f1")(said) == [1.0, 0.5, 1.0, 0.0]
    assert Compared("exact_match")(said) == [1.0, 0.0, 1.0, 0.0]
    with pytest.raises(ConfigError, match="unknown score 'bleu'. Remedy: use one of f1, exact_match, accuracy"):
        Compared("bleu")
    with pytest.raises(DataError, match="no column 'completion'; columns found: text. Remedy: .*--completion-column"):
        Compared("f1").check(["text"], False)


def test_trl_signature() -> None:
    """A function written for GRPO runs as it is: everything by name, columns as lists, None where it does not apply."""
    seen: dict[str, Any] = {}

    def solved(prompts: list[str], completions: list[str], completion_ids: Any, answer: Any, **rest: Any) -> Any:
        seen.update(prompts=prompts, ids=completion_ids, rest=rest)
        return [
            None if right is None else float(right in said) for said, right in zip(completions, answer, strict=True)
        ]

    scores = reward(solved)(answers("it is 4", "5", "?", answer=["4", "4", None], level=[1, 2, 3]))
    assert scores == [1.0, 0.0, None]
    assert seen == {"prompts": ["p0", "p1", "p2"], "ids": [[0], [1], [2]], "rest": {"level": [1, 2, 3]}}


@pytest.mark.parametrize(
    "returned",
    [[1, 2], (1.0, 2.0), np.array([1, 2]), torch.tensor([1.0, 2.0]), [np.float32(1), torch.tensor(2)],
     [True, Fraction(2)]],
)  # fmt: skip
def test_numbers_of_all_kinds(returned: Any) -> None:
    """Lists, tuples, arrays and tensors of any kind of number are numbers."""
    assert reward(lambda completions: returned)(answers("a", "b")) == [1.0, 2.0]


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        ([1.0], "returned 1 numbers for 2 completions"),
        ([1.0, 2.0, 3.0], "returned 3 numbers for 2 completions"),
        ([], "returned 0 numbers for 2"),
        ([1.0, math.nan], "returned nan for the completion 'b', not a finite number"),
        ([math.inf, 1.0], "returned inf for the completion 'a'"),
        ([10**400, 1.0], "for the completion 'a', not a finite number"),
        ([1.0, "0.5"], r"returned '0.5' \(str\) for the completion 'b'"),
        ([1.0, [0.5]], r"\(list\) for the completion 'b'"),
        (1.0, "returned 1.0, not a list of numbers"),
        (None, r"returned 'None' \(NoneType\), not a list"),
        ("12", r"returned '12' \(str\), not a list"),
        ({"a": 1, "b": 2}, r"\(dict\), not a list"),
        (torch.ones(2, 2), r"\(Tensor\), not a list"),
    ],
)
def test_what_is_no_reward(returned: Any, says: str) -> None:
    """Function, what it returned, step, remedy."""

    def bad(completions: Any) -> Any:
        return returned

    with pytest.raises(FunctionError, match=rf"bad .*{says}.*at step 4.*Nothing was.*Remedy: correct the"):
        reward(bad)(answers("a", "b"))


def test_several_with_weights() -> None:
    """Weighted sums over what applies, as TRL sums; the name says the weights."""
    first, second = reward(lambda completions: [1.0, None, None]), reward(lambda completions: [0.5, 2.0, None])
    both = Weighted([first, second], [2.0, -1.0])
    assert both(answers("a", "b", "c")) == [1.5, -2.0, None]
    assert both.name.startswith("2 ") and " + -1 " in both.name and both.metric == "reward"
    assert Weighted([Compared("f1"), first])(answers("fine", "?", "?")) == [2.0, 0.0, 0.0]
    assert (Weighted([Compared("f1")]).metric, Weighted([Compared("f1")], [2.0]).metric) == ("f1", "reward")
    with pytest.raises(ConfigError, match="1 weights for 2 rewards. Remedy"):
        Weighted([first, second], [1.0])
    with pytest.raises(ConfigError, match="no score was given"):
        Weighted([])


def test_checks_reach_every_part() -> None:
    """A column that one of several functions needs is named."""

    def needs(completions: Any, gold: Any) -> Any: ...

    with pytest.raises(ConfigError, match="needs an argument 'gold'"):
        Weighted([Compared("f1"), reward(needs)]).check(["text"], True)


def test_parts_of_a_sum() -> None:
    """Each example's sum and the scores behind it; names without files, unless two would be the same."""
    both = Weighted([Compared("f1"), Compared("exact_match")], [1.0, 10.0])
    assert both.split(answers("a great plot", "fine")) == [[0.5, 0.5, 0.0], [11.0, 1.0, 1.0]]
    assert both.parts == ("f1", "exact_match") and Weighted([Compared("f1")]).parts == ()
    named = [Reward(Named(name, len), 1) for name in ("x/a.py:score", "b.py:score", "pack.mod:other")]
    assert Weighted(named[1:]).parts == ("score", "other")
    assert Weighted(named).parts == ("a.py:score", "b.py:score", "pack.mod:other")
