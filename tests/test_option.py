"""Classes of options: help texts, bounds, checks and schema."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pytest

from zotune.config import OPTIONS, TrainConfig
from zotune.errors import ConfigError
from zotune.option import Opt, checked, hints, schema


def test_every_option_says_what_it_is_for() -> None:
    """Each option has a sentence, and bounds only where a number is."""
    for name in OPTIONS:
        (opt,) = hints(TrainConfig)[name].__metadata__
        assert isinstance(opt, Opt) and opt.help.endswith((".", "...")) and len(opt.help) < 90, name


def test_schema_carries_the_bounds() -> None:
    """The JSON schema names the required options, the bounds, and forbids others."""
    found = schema(TrainConfig).model_json_schema()
    assert set(found["required"]) == {"model", "output_dir"}
    assert found["additionalProperties"] is False
    assert found["properties"]["steps"]["minimum"] == 0
    assert set(found["properties"]) == set(OPTIONS)


@dataclass
class Few:
    """A class of options of its own."""

    size: Annotated[int, Opt("How many.", ge=1, le=9)]
    names: Annotated[list[str], Opt("Which.")] = field(default_factory=list)
    min_share: Annotated[float, Opt("From.", gt=0)] = 0.5
    to: Annotated[Path | None, Opt("Where.")] = None


def test_values_become_what_the_class_says() -> None:
    """Text is converted, defaults are filled in, and each call has a list of its own."""
    found = checked(Few, {"size": "3"})
    assert found == {"size": 3, "names": [], "min_share": 0.5, "to": None}
    assert found["names"] is not checked(Few, {"size": 3})["names"]
    assert checked(Few, {"size": 9, "names": [1, "b"]})["names"] == ["1", "b"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"size": 0}, "^size is 0: input should be greater than or equal to 1. Remedy: correct it. --size: How many.$"),
        ({"size": 10}, "^size is 10: input should be less than or equal to 9"),
        ({"size": 1, "min_share": 0}, "^min_share is 0: .*greater than 0. Remedy: correct it. --min-share: From.$"),
        ({"size": 1, "min_share": float("inf")}, "^min_share is inf: .*finite"),
        ({"size": 1, "to": ""}, "^to is empty. Remedy: name a file or folder with --to.$"),
        ({"size": 1, "names": ["a", "b\0"]}, r"^names is 'b\\x00', which holds a character that is no text. .*--names"),
        ({"size": 1, "names": ["\ud800"]}, "which holds a character that is no text. Remedy: correct --names.$"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_with_its_flag(given: dict[str, Any], said: str) -> None:
    """The option, its value, the reason, and what the option is for."""
    with pytest.raises(ConfigError, match=said):
        checked(Few, given)
