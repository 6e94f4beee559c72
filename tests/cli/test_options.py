"""Flags are TrainConfig: same names, same values."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from zotune.cli.options import METHOD_FLAGS, values_of, with_options
from zotune.config import OPTIONS
from zotune.errors import ConfigError


@pytest.mark.parametrize(
    ("given", "values"),
    [
        ({"label_words": "terrible, great"}, {"label_words": ["terrible", "great"]}),
        ({"label_words": "1,0"}, {"label_words": ["1", "0"]}),
        ({"labels": "0,1,x"}, {"labels": [0, 1, "x"]}),
        ({"labels": "-1, 01,true,1.0,1e3,null,-0,"}, {"labels": [-1, "01", "true", "1.0", "1e3", "null", "-0", ""]}),
        ({"lora_targets": "q_proj"}, {"lora_targets": ["q_proj"]}),
        ({"lr": "1e-6", "steps": "5"}, {"lr": "1e-6", "steps": "5"}),
        ({"template": "a, {{ b }}"}, {"template": "a, {{ b }}"}),
        ({"rank": "2", "normalize": "none"}, {"method_args": {"rank": 2, "normalize": "none"}}),
        ({"sparsity": "0.75"}, {"method_args": {"sparsity": 0.75}}),
        ({"method_args": ["a-b=1e-3", "c=x=y", "d="]}, {"method_args": {"a_b": 1e-3, "c": "x=y", "d": None}}),
        ({"trust_remote_code": True}, {"trust_remote_code": True}),
    ],
)
def test_values(given: dict[str, Any], values: dict[str, Any]) -> None:
    """Lists are split, labels become integers where they are, arguments of the method what they look like."""
    assert values_of(given) == values


@pytest.mark.parametrize("text", ["rank", "=2", " =2"])
def test_method_arg_without_a_name(text: str) -> None:
    """`--method-arg` wants name=value, and so does `--scorer-arg`."""
    for name, flag in (("method_args", "--method-arg"), ("scorer_args", "--scorer-arg")):
        with pytest.raises(ConfigError, match=f"{flag} is .*name=value, such as {flag}"):
            values_of({name: [text]})


def test_signature_has_every_option() -> None:
    """The decorator gives one keyword per option, and passes on only what was used."""
    seen: dict[str, Any] = {}

    def command(own: int = 3, **given: Any) -> None:
        """Text."""
        seen.update(given, own=own)

    made = with_options([*OPTIONS, *METHOD_FLAGS])(command)
    assert list(inspect.signature(made).parameters) == ["own", *OPTIONS, *METHOD_FLAGS]
    assert made.__doc__ == "Text."
    made(own=0, model="m", eval=None, trust_remote_code=False, steps="0", method_args=[])
    assert seen == {"own": 0, "model": "m", "steps": "0"}
