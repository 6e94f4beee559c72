"""What a class of options is made of: a help text and bounds for each, its flag, checks, and a schema.

Such a class is a plain dataclass whose fields are `Annotated[type, Opt(...)]`, so that `--help` stays fast: pydantic
checks the values, and is imported when they are made.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final, get_args, get_type_hints

from zotune.errors import ConfigError

if TYPE_CHECKING:
    from pydantic import BaseModel


@final
@dataclass(frozen=True)
class Opt:
    """What one option is for, and its bounds: `ge` at least, `gt` above, `le` at most."""

    help: str
    ge: float | None = None
    gt: float | None = None
    le: float | None = None


def flag(name: str) -> str:
    """The command-line flag of an option."""
    return "--" + name.replace("_", "-")


@functools.cache
def hints(options: type) -> dict[str, Any]:
    """The annotation of each option of a class: `Annotated[type, Opt]`."""
    return get_type_hints(options, include_extras=True)


@functools.cache
def schema(options: Any) -> type[BaseModel]:
    """A class of options as a pydantic model, for checking and for a JSON schema."""
    from pydantic import ConfigDict, Field, create_model

    fields: dict[str, Any] = {}
    for item in dataclasses.fields(options):
        hint, opt = hints(options)[item.name].__origin__, hints(options)[item.name].__metadata__[0]
        bounds = {key: getattr(opt, key) for key in ("ge", "gt", "le") if getattr(opt, key) is not None}
        default: Any = ... if item.default is dataclasses.MISSING else item.default
        if item.default_factory is not dataclasses.MISSING:
            fields[item.name] = (hint, Field(default_factory=item.default_factory, description=opt.help))
        else:
            fields[item.name] = (hint, Field(default, description=opt.help, **bounds))
    settings = ConfigDict(extra="forbid", coerce_numbers_to_str=True, allow_inf_nan=False, protected_namespaces=())
    model: type[BaseModel] = create_model(options.__name__, __config__=settings, **fields)
    return model


def checked(options: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as the types of a class of options say. Raises ConfigError, which names the first wrong one."""
    from pydantic import ValidationError

    for name, value in values.items():
        if value == "" and _is_path(options, name):  # as a path it would be the folder where the command was started
            raise ConfigError(f"{name} is empty. Remedy: name a file or folder with {flag(name)}.")
    try:
        found = schema(options)(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "config"
        raise ConfigError(
            f"{name} is {first['input']!r}: {first['msg'].lower()}. Remedy: correct it. "
            f"{flag(name)}: {hints(options)[name].__metadata__[0].help}"
        ) from None
    given = {item.name: getattr(found, item.name) for item in dataclasses.fields(options)}
    for name, value in given.items():
        _refuse_unwritable(name, value)
    return given


def _is_path(options: type, name: str) -> bool:
    hint = hints(options).get(name)
    return hint is not None and Path in (hint.__origin__, *get_args(hint.__origin__))


def _refuse_unwritable(name: str, value: Any) -> None:
    """A NUL or half a surrogate pair: no file could have that name, and no tokenizer reads it."""
    for text in (value, *value) if isinstance(value, list) else (value,):
        if isinstance(text, str | Path) and ("\0" in str(text) or any("\ud800" <= c <= "\udfff" for c in str(text))):
            raise ConfigError(
                f"{name} is {str(text)!r}, which holds a character that is no text. Remedy: correct {flag(name)}."
            )
