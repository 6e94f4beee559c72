"""The arguments of a method, checked against its factory's annotations: in Python, from a config and from a journal.

Our own small check, since `import zotune` must do without pydantic. It looks at types and names; what a number must be
beyond that, the method says itself.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import numbers
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from zotune.errors import ConfigError

P = ParamSpec("P")
R = TypeVar("R")

# What a factory fills in itself, beside the parts without a default.
_FILLED_IN = ("method", "arguments")
_WORDS = {int: "a whole number", float: "a number", bool: "True or False", str: "text"}


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint with the most similar known name, empty when nothing is near."""
    found = difflib.get_close_matches(name.replace("-", "_").lower(), sorted(known), n=1, cutoff=0.6)
    return f" The nearest is {found[0]!r}." if found else ""


def checked(build: Callable[P, R]) -> Callable[P, R]:
    """The factory, refusing names that it does not know and values of other types before it does anything.

    Raises ConfigError, which names the argument and what is near or right.
    """
    names = list(inspect.signature(build).parameters)

    @functools.wraps(build)
    def call(*args: P.args, **given: P.kwargs) -> R:
        plain: Any = {name: _plain(value) for name, value in {**dict(zip(names, args, strict=False)), **given}.items()}
        check(build, plain)
        return build(*[plain.pop(name) for name in names[: len(args)]], **plain)

    return call


def _plain(value: Any) -> Any:
    """A number of numpy as Python's own, which is what a journal records."""
    return value.item() if isinstance(value, numbers.Number) and hasattr(value, "item") else value


def check(build: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Raises ConfigError for the first of these arguments that the factory does not know, or of another type."""
    takes = accepted(build)
    for name, value in given.items():
        if name not in takes:
            own = ", ".join(sorted(set(accepted(build, options=False)) - {"model"}))
            raise ConfigError(
                f"{build.__name__} has no argument {name!r}.{nearest(name, takes)} Remedy: remove it or correct its "
                f"name; its own are {own}, the others those of ZerothOrder."
            )
        if not fits(value, takes[name]):
            near = nearest(value, _words_of(takes[name])) if isinstance(value, str) else ""
            raise ConfigError(f"{name} is {value!r}.{near} Remedy: use {said(takes[name])}.")


@functools.cache
def accepted(build: Callable[..., Any], options: bool = True) -> dict[str, Any]:
    """The arguments of a factory with their types; with those of the class that its `**options` go to."""
    build = inspect.unwrap(build)
    hints, parameters = get_type_hints(build), inspect.signature(build).parameters
    found = {name: hints.get(name, Any) for name, p in parameters.items() if p.kind is not p.VAR_KEYWORD}
    found["model"] = Any  # what is no module is told so by the optimizer
    if options and len(found) < len(parameters):
        found = {**_options(hints["return"]), **found}
    return found


def _options(made: type) -> dict[str, Any]:
    """The keywords with a default of a class, with their types; Any for types that are not imported at run time."""
    init: Any = vars(made)["__init__"]
    taken = [p for p in inspect.signature(init).parameters.values() if p.default is not p.empty]
    found: dict[str, Any] = {}
    for parameter in taken:
        only = types.SimpleNamespace(__annotations__={parameter.name: parameter.annotation})
        try:
            found |= get_type_hints(only, globalns=init.__globals__)
        except NameError:
            found[parameter.name] = Any
    return {name: hint for name, hint in found.items() if name not in _FILLED_IN}


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type, strictly: 2.0 is no whole number, 1 is not True; 2 is a number. Any class fits
    itself.
    """
    origin = get_origin(hint)
    if origin is Literal:
        return any(type(value) is type(each) and value == each for each in get_args(hint))
    if origin in (Union, types.UnionType):
        return any(fits(value, each) for each in get_args(hint))
    if origin is dict:
        keys, values = get_args(hint)
        return isinstance(value, dict) and all(fits(k, keys) and fits(v, values) for k, v in value.items())
    if hint in (int, float):
        return isinstance(value, int if hint is int else (int, float)) and not isinstance(value, bool)
    kind = origin or hint
    return hint is Any or not isinstance(kind, type) or isinstance(value, kind)


def said(hint: Any) -> str:
    """A type in words: "'momentum', 'adam' or None"."""
    words = _alternatives(hint)
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _alternatives(hint: Any) -> list[str]:
    if get_origin(hint) is Literal:
        return [repr(each) for each in get_args(hint)]
    if get_origin(hint) in (Union, types.UnionType):
        return [word for each in get_args(hint) for word in _alternatives(each)]
    if hint is type(None):
        return ["None"]
    return [_WORDS.get(hint, str(getattr(hint, "__name__", hint)))]


def _words_of(hint: Any) -> list[str]:
    """The words that a type allows, without those that are no text."""
    if get_origin(hint) in (Union, types.UnionType):
        return [word for each in get_args(hint) for word in _words_of(each)]
    return [each for each in get_args(hint) if isinstance(each, str)] if get_origin(hint) is Literal else []
