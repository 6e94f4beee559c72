"""What a journal's header must be before a replay reads it: it may come from anywhere, its CRC-32 proves nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from zotune.arguments import accepted, fits
from zotune.errors import JournalError
from zotune.plain import is_count
from zotune.records import MAX_LOSSES

MOST_WHOLE = 2**24  # of a method's arguments that are whole numbers
MOST_NUMBER = 1e30  # of the others
_LOSSES = ("queries", "population", "probes")  # of a step: a record must hold one for each


def check_parts(header: dict[str, Any]) -> None:
    """Raises JournalError, naming the key, where a part that is there has another type than runs write.

    For all who read a run's header, also without a replay: what they find may be used as what it is called.
    """
    for key, right in _PARTS.items():
        if key in header and not right(header[key]):
            _refuse(f"{key} is {str(header[key])[:60]!r}")


def check_header(header: dict[str, Any]) -> None:
    """Raises JournalError, naming the key, for a header that no `ZerothOrder.header()` could have written.

    Counts that would be allocated later are held to what a record and the parameters' own shapes allow.
    """
    for key in ("stream", "method", "seed", "parameters", "groups", "arguments"):
        if key not in header:
            _refuse(f"it has no {key}")
    check_parts(header)
    parameters, groups, arguments = (header[key] for key in ("parameters", "groups", "arguments"))
    names = [parameter["name"] for parameter in parameters]
    if len(set(names)) != len(names) or names != [name for group in groups for name in group["names"]]:
        _refuse("its groups do not hold each of its parameters once, in their order")
    largest = max((size for parameter in parameters for size in parameter["shape"]), default=1)
    for name, most in (("rank", max(largest, 64)), ("groups", max(len(names), 1))):
        if name in arguments and not is_count(arguments[name], most):
            _refuse(f"{name} is {arguments[name]!r}, over {most}")


def check_arguments(build: Callable[..., Any], arguments: dict[str, Any]) -> None:
    """Raises JournalError for a recorded argument that the factory does not know, not of its type, or out of bounds."""
    takes = accepted(build, options=False)
    for name, value in arguments.items():
        if name not in takes or not fits(value, takes[name]) or beyond(name, value):
            raise JournalError(
                f"this journal's header is not of a run: {name} is {value!r}. Remedy: restore the file from a copy."
            )


def beyond(name: str, value: Any) -> float:
    """The bound of a method's argument, where its value is beyond it; 0 where it is not.

    Larger ones would fill the memory, or overflow where they are squared, before anything else refused them.
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        return 0
    most = MAX_LOSSES if name in _LOSSES else MOST_WHOLE if isinstance(value, int) else MOST_NUMBER
    return 0 if abs(value) <= most else most


def _refuse(what: str) -> NoReturn:
    raise JournalError(f"this journal's header is not one of zotune: {what}. Remedy: restore the file from a copy.")


def _is_parameter(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("name"), str)
        and isinstance(value.get("dtype"), str)
        and isinstance(value.get("shape"), list)
        and all(map(is_count, value["shape"]))
    )


def _is_group(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("names"), list)
        and all(isinstance(name, str) for name in value["names"])
        and isinstance(value.get("weight_decay"), int | float)
        and abs(value["weight_decay"]) <= MOST_NUMBER
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


# What each part is where it is there; the last ones are those that `zotune train` adds.
_PARTS: dict[str, Callable[[Any], bool]] = {
    "method": _is_text,
    "arguments": _is_object,
    "seed": lambda value: is_count(value, 2**64 - 1),
    "stream": _is_object,
    "fold_every": lambda value: is_count(value, 2**32) and value > 0,
    "blocks": lambda value: value is None or isinstance(value, str),
    "parameters": lambda value: isinstance(value, list) and all(map(_is_parameter, value)),
    "groups": lambda value: isinstance(value, list) and all(map(_is_group, value)),
    "halve_eps": lambda value: isinstance(value, bool),
    **dict.fromkeys(("zotune", "torch", "base_sha256", "scope_sha256", "train_sha256", "eval_sha256"), _is_text),
    "config": _is_object,
    "functions": lambda value: isinstance(value, dict) and all(map(_is_text, value.values())),
    "branch": _is_object,
}
