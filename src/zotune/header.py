"""What a journal's header must be before a replay reads it: it may come from anywhere, its CRC-32 proves nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from zotune.arguments import accepted, fits
from zotune.errors import JournalError
from zotune.records import MAX_LOSSES


def check_header(header: dict[str, Any]) -> None:
    """Raises JournalError, naming the key, for a header that no `ZerothOrder.header()` could have written.

    Counts that would be allocated later are held to what a record and the parameters' own shapes allow.
    """
    wrong = next(_wrong(header), None)
    if wrong is not None:
        raise JournalError(
            f"this journal's header is not one of zotune: {wrong}. Remedy: restore the file from a copy."
        )


def check_arguments(build: Callable[..., Any], arguments: dict[str, Any]) -> None:
    """Raises JournalError for a recorded argument that the factory does not know, or not of the type that it says."""
    takes = accepted(build, options=False)
    for name, value in arguments.items():
        if name not in takes or not fits(value, takes[name]):
            raise JournalError(
                f"this journal's header is not of a run: {name} is {value!r}. Remedy: restore the file from a copy."
            )


def _wrong(header: dict[str, Any]) -> Any:
    """Yields what is wrong, if anything."""
    if not isinstance(header.get("stream"), dict):
        yield "it has no stream"
    if not isinstance(header.get("method"), str):
        yield "it has no method"
    if not _whole(header.get("seed"), 2**64 - 1):
        yield f"seed is {header.get('seed')!r}"
    parameters, groups, arguments = (header.get(key) for key in ("parameters", "groups", "arguments"))
    if not isinstance(parameters, list) or not all(map(_is_parameter, parameters)):
        yield "parameters is not a list of names, shapes and dtypes"
        return
    if not isinstance(groups, list) or not all(map(_is_group, groups)):
        yield "groups is not a list of names and weight decays"
        return
    names = [parameter["name"] for parameter in parameters]
    if len(set(names)) != len(names) or names != [name for group in groups for name in group["names"]]:
        yield "its groups do not hold each of its parameters once, in their order"
    if not isinstance(arguments, dict):
        yield "it has no arguments"
        return
    largest = max((size for parameter in parameters for size in parameter["shape"]), default=1)
    for name, most in (("queries", MAX_LOSSES), ("rank", max(largest, 64))):
        if name in arguments and not _whole(arguments[name], most):
            yield f"{name} is {arguments[name]!r}, over {most}"


def _whole(value: Any, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def _is_parameter(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("name"), str)
        and isinstance(value.get("dtype"), str)
        and isinstance(value.get("shape"), list)
        and all(_whole(size, 2**63 - 1) for size in value["shape"])
    )


def _is_group(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("names"), list)
        and all(isinstance(name, str) for name in value["names"])
        and isinstance(value.get("weight_decay"), int | float)
        and math.isfinite(value["weight_decay"])
    )
