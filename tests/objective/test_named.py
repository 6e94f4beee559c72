"""Scores by name: what they give, and what is said of a name that makes no sense."""

from __future__ import annotations

import pytest

from zotune.errors import ConfigError, DataError
from zotune.objective.named import is_named, named
from zotune.objective.reward import Answers, Weighted


def answers(*texts: str) -> Answers:
    """Completions; right is "a great film" or "fine"."""
    count = len(texts)
    right = [("a great film", "fine")] * count
    return Answers(["p"] * count, list(texts), list(texts), [[0]] * count, right, {}, "at step 4")


@pytest.mark.parametrize(
    ("name", "texts", "scores"),
    [
        ("accuracy", (" fine\n", "Fine", "a great film", "great film", ""), [1, 0, 1, 0, 0]),
        ("exact_match", ("Fine!", "great film", ""), [1, 1, 0]),
        ("f1", ("a great plot", ""), [0.5, 0]),
        ("regex:^[0-9]+$", ("42", "4 2", ""), [1, 0, 0]),
        ("regex:a:b", ("xa:bx", "ab"), [1, 0]),
        ("json_valid", ('{"a": 1}', " [1]\n", "{a: 1}", "", "[" * 100_000), [1, 1, 0, 0, 0]),
        (
            "length:4",
            ("one two three four", "one two", "", "one two three four five six", "a " * 9),
            [1, 0.5, 0, 0.5, 0],
        ),
    ],
)
def test_scores(name: str, texts: tuple[str, ...], scores: list[float]) -> None:
    """Worked out by hand; larger is better."""
    assert is_named(name) and named(name)(answers(*texts)) == scores


@pytest.mark.parametrize("name", ["own.py:length", "pack.regex:score", "rewards", "pack.module.f1"])
def test_functions_are_no_names(name: str) -> None:
    """They are imported."""
    assert not is_named(name)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("regex:(", "reward 'regex:.' is no pattern"),
        ("regex", "reward regex has no pattern. Remedy: write regex:PATTERN"),
        ("length", "reward 'length' names no number of words. Remedy: write length:20"),
        ("length:0", "names no number of words"),
        ("length:2.5", "names no number of words"),
        ("json_valid:x", "takes nothing behind a colon"),
    ],
)
def test_names_without_sense(name: str, says: str) -> None:
    """One sentence."""
    with pytest.raises(ConfigError, match=f"{says}.*"):
        named(name)


def test_what_they_need() -> None:
    """Three compare with what is right; their names stay whole beside others."""
    for name in ("f1", "exact_match", "accuracy"):
        with pytest.raises(DataError, match=f"{name} compares with what is right"):
            named(name).check(["text"], False)
    named("regex:x").check([], False)
    both = Weighted([named("regex:a.b:c"), named("accuracy")])
    assert both.parts == ("regex:a.b:c", "accuracy") and both.metric == "reward"
    assert Weighted([named("accuracy")]).metric == "reward"
