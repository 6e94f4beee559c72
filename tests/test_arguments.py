"""Wrong arguments of a method are refused in Python as on the command line, before anything is drawn."""

from __future__ import annotations

import json
from typing import Any, Literal

import numpy as np
import pytest
import torch
from tests.models import squares
from torch import nn

import zotune
from zotune.arguments import accepted, check, fits, nearest, said
from zotune.errors import ConfigError
from zotune.methods import METHODS
from zotune.session import Session


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))


WRONG = [
    ("LoZO", {"rnak": 2}, "LoZO has no argument 'rnak'. The nearest is 'rank'. Remedy: .* its own are .*interval, law"),
    ("FZOO", {"querys": 3}, "FZOO has no argument 'querys'"),
    ("MeZO", {"weight_decy": 0.1}, "no argument 'weight_decy'. The nearest is 'weight_decay'"),
    ("MeZO", {"direction": None}, "no argument 'direction'"),
    ("MeZO", {"method": "lozo"}, "no argument 'method'"),
    ("LoZO", {"normalize": "rm"}, "normalize is 'rm'. The nearest is 'rms'. Remedy: use 'none' or 'rms'."),
    ("LoZO", {"law": "gauss"}, "law is 'gauss'. The nearest is 'gaussian'. Remedy: use 'rademacher' or 'gaussian'."),
    ("LoZO", {"rank": 2.5}, "rank is 2.5. Remedy: use a whole number."),
    ("LoZO", {"rank": 2.0}, "rank is 2.0. Remedy"),
    ("LoZO", {"rank": "2"}, "rank is '2'. Remedy"),
    ("ZOMuon", {"rank": True}, "rank is True. Remedy"),
    ("LoZO", {"interval": float("inf")}, "interval is inf. Remedy"),
    ("AGZO", {"sided": "both"}, "sided is 'both'. Remedy: use 'one' or 'two'."),
    ("MeZO", {"feedback": "one"}, "feedback is 'one'. Remedy: use 'two_sided' or 'residual'."),
    ("MeZO", {"moments": "adma"}, "moments is 'adma'. The nearest is 'adam'. Remedy: use 'momentum', 'adam' or None."),
    ("MeZO", {"scaling": "var"}, "scaling is 'var'"),
    ("MeZO", {"history": 2.5}, "history is 2.5. Remedy: use a whole number or None."),
    ("MeZO", {"scaling": "variance", "scales": {"0.weight": "1"}}, "scales is "),
    ("MeZO", {"lr": "1e-3"}, "lr is '1e-3'. Remedy: use a number."),
    ("MeZO", {"seed": 1.0}, "seed is 1.0"),
    ("MeZO", {"lanes": "of"}, "lanes is 'of'. The nearest is 'off'."),
    ("MeZO", {"fold_every": 2.5}, "fold_every is 2.5"),
    ("HiZOO", {"eps": "a"}, "eps is 'a'"),
    ("SubZero", {"adam": "no"}, "adam is 'no'. Remedy: use True or False."),
    ("SubZero", {"sides": 1.0}, "sides is 1.0. Remedy: use 1 or 2."),
    ("CurvZO", {"clip": "none"}, "clip is 'none'. Remedy: use a number or None."),
]


@pytest.mark.parametrize(("name", "wrong", "words"), WRONG)
def test_a_wrong_argument_is_named(name: str, wrong: dict[str, Any], words: str) -> None:
    """Misspelt names with the nearest, values of another type with what is right; the next optimizer works."""
    with pytest.raises(ConfigError, match=words):
        getattr(zotune, name)(net(), **wrong)
    optimizer = getattr(zotune, name)(net())
    optimizer.estimate(squares, {"x": torch.ones(3, 4)})


def test_given_by_position_they_are_checked_too() -> None:
    """lr and eps stand behind the model."""
    with pytest.raises(ConfigError, match="eps is 'small'"):
        zotune.MeZO(net(), 1e-6, "small")  # type: ignore[arg-type]
    assert zotune.MeZO(net(), 1, 1e-3).defaults["lr"] == 1


@pytest.mark.parametrize("method", METHODS)
def test_every_method_checks_its_own(method: str) -> None:
    """Each argument of each factory refuses a value that is none of its type, and a misspelt name the nearest."""
    build = METHODS[method].build
    own = set(accepted(build, options=False)) - {"model"}
    assert own >= {"lr", "eps", "seed"}
    for name in own:
        with pytest.raises(ConfigError, match=f"{name} is <object.*Remedy: use "):
            build(net(), **{name: object()})
        with pytest.raises(ConfigError, match=rf"{build.__name__} has no argument '{name}_'. The nearest is '{name}'"):
            build(net(), **{f"{name}_": 1})


@pytest.mark.parametrize("method", METHODS)
def test_the_defaults_fit(method: str) -> None:
    """What a factory records is what it takes: a journal's header passes the same check."""
    check(METHODS[method].build, METHODS[method].build(net()).arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"normalize": "rm"}, "normalize is 'rm'. The nearest is 'rms'. Remedy: use 'none' or 'rms'."),
        ({"rank": 2.5}, "rank is 2.5. Remedy: use a whole number."),
    ],
)
def test_a_run_says_the_same(config: Any, arguments: dict[str, Any], words: str) -> None:
    """From a config the same check speaks, before a model is looked for."""
    with pytest.raises(ConfigError, match=words):
        Session(config(method="lozo", method_args=arguments, model="nowhere"))


@pytest.mark.parametrize(
    ("hint", "right", "wrong"),
    [
        (int, [0, -3], [1.0, True, "1", None]),
        (float, [1.5, 2, float("nan")], [True, "1", None]),
        (bool, [True, False], [1, 0, "true", None]),
        (str, ["", "a"], [1, None]),
        (Literal["a", 1], ["a", 1], ["b", 1.0, True, None]),
        (int | None, [1, None], [1.0, "x"]),
        (dict[str, float], [{}, {"a": 1}], [{1: 1.0}, {"a": "b"}, [], None]),
        (list[int], [[1]], [(1,), None]),
        (nn.Module, [nn.Identity()], [nn.Module, None]),
        (Any, [None, object()], []),
    ],
)
def test_what_fits_a_type(hint: Any, right: list[Any], wrong: list[Any]) -> None:
    """Strictly: a whole number is not 1.0, True is no number."""
    assert all(fits(value, hint) for value in right) and not any(fits(value, hint) for value in wrong)


def test_words() -> None:
    """Types in words, and the most similar name, if one is near."""
    assert said(Literal["a", "b"] | None) == "'a', 'b' or None"
    assert said(float | str) == "a number or text"
    assert nearest("learning-rat", ["learning_rate", "eps"]) == " The nearest is 'learning_rate'."
    assert nearest("xyz", ["eps"]) == ""


def test_numbers_of_numpy_are_numbers() -> None:
    """They become Python's own, which a journal can hold; a truth value of numpy is none."""
    opt = zotune.LoZO(net(), np.float32(0.5), seed=np.int64(3), queries=np.int16(2), rank=np.uint8(1))
    assert opt.defaults["lr"] == 0.5 and type(opt.seed) is int and type(opt.arguments["queries"]) is int
    assert json.loads(json.dumps(opt.header()))["seed"] == 3
    with pytest.raises(ConfigError, match="rank is .*True.* Remedy: use a whole number"):
        zotune.LoZO(net(), rank=np.bool_(True))
