"""Flags made from `TrainConfig`, so that flags, YAML keys and Python arguments have the same names.

Values stay text here and are checked with the config: one wording of errors for all three ways, and no
pydantic before it is needed.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer

from zotune.config import TrainConfig
from zotune.errors import ConfigError
from zotune.option import flag, hints

# Arguments of methods that are common enough for a flag of their own; --method-arg takes any other.
METHOD_FLAGS: Mapping[str, str] = {
    "rank": "Rank of low-rank directions.",
    "interval": "Steps between new low-rank factors.",
    "normalize": "How low-rank directions are scaled.",
    "law": "Law of the directions: gaussian or rademacher.",
    "sparsity": "Share of the weights that stay fixed.",
}
_METAVARS: Mapping[Any, str] = {int: "INTEGER", float: "NUMBER", Path: "PATH", str: "TEXT"}


def with_options(names: Iterable[str]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command that ends in `**given` one flag per named option; `given` holds those that were used."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(function, eval_str=True).parameters.values() if p.kind != p.VAR_KEYWORD]
        made = [_parameter(name) for name in names]

        def command(**values: Any) -> None:
            function(**{name: value for name, value in values.items() if _was_given(value)})

        parameters = [*(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own), *made]
        command.__doc__ = function.__doc__
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return command

    return decorate


def values_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """What the flags say, by option: lists split at commas, arguments of the method as numbers or words."""
    values: dict[str, Any] = {}
    arguments: dict[str, Any] = {}
    for name, value in given.items():
        if name == "method_args":
            arguments.update(_pair(text, "--method-arg rank=2") for text in value)
        elif name == "scorer_args":
            values[name] = dict(_pair(text, "--scorer-arg enforce_eager=true") for text in value)
        elif name in METHOD_FLAGS:
            arguments.setdefault(name, _scalar(value))
        elif _is_list(name):
            words = [word.strip() for word in value.split(",")]
            values[name] = [_label(word) for word in words] if name == "labels" else words
            if name == "stop":  # a shell has no easy way to write a line end
                values[name] = [word.replace("\\n", "\n") for word in words]
        else:
            values[name] = value
    return {**values, "method_args": arguments} if arguments else values


def _was_given(value: Any) -> bool:
    return value is not None and value is not False and value != []


def _scalar(text: str) -> Any:
    from zotune.yaml12 import parse_scalar

    return parse_scalar(text)


def _label(text: str) -> str | int:
    """A label as rows of text have it: an integer for what one is written as, else the text itself."""
    value = _scalar(text)
    return value if type(value) is int and str(value) == text else text


def _pair(text: str, such_as: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise ConfigError(f"{such_as.split()[0]} is {text!r}. Remedy: write name=value, such as {such_as}.")
    return name.strip().replace("-", "_"), _scalar(value)


def _kinds(name: str) -> Sequence[Any]:
    """The types of an option without None."""
    hint = hints(TrainConfig)[name].__origin__
    if get_origin(hint) in (Union, types.UnionType):
        return [kind for kind in get_args(hint) if kind is not type(None)]
    return [hint]


def _is_list(name: str) -> bool:
    return get_origin(_kinds(name)[0]) is list


def _parameter(name: str) -> inspect.Parameter:
    if name in METHOD_FLAGS:
        return _make(name, str | None, flag(name), f"{METHOD_FLAGS[name]} Only for methods that take it.", "VALUE")
    if name == "method_args":
        return _make(name, list[str] | None, "--method-arg", "Any argument of the method; repeatable.", "NAME=VALUE")
    if name == "scorer_args":
        return _make(name, list[str] | None, "--scorer-arg", "An option of vLLM; repeatable.", "NAME=VALUE")
    help_text = hints(TrainConfig)[name].__metadata__[0].help
    default = next(f.default for f in dataclasses.fields(TrainConfig) if f.name == name)
    if default is dataclasses.MISSING:
        help_text += "  [required]"
    elif default is not None and default is not False:
        help_text += f"  [default: {default}]"
    kind = _kinds(name)[0]
    if kind is bool:
        return _make(name, bool | None, flag(name), help_text, None)
    metavar = "|".join(get_args(kind)) if get_origin(kind) is Literal else _METAVARS.get(kind, "A,B,...")
    return _make(name, str | None, flag(name), help_text, metavar)


def _make(name: str, kind: Any, written: str, help_text: str, metavar: str | None) -> inspect.Parameter:
    option = typer.Option(written, help=help_text, metavar=metavar, show_default=False)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, option])
