"""`zotune branch`: a new run that shares the first steps of another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from zotune.cli.frame import Json, RunArgument, Session, execute
from zotune.cli.options import METHOD_FLAGS, values_of
from zotune.config import OPTIONS
from zotune.errors import ConfigError


def command(
    run: RunArgument,
    to: Annotated[Path, typer.Option("--to", help="Folder of the new run.", show_default=False)],
    step: Annotated[
        int | None, typer.Option("--step", help="How many steps to share. Default: all.", show_default=False)
    ] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Another value of an option; repeatable.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a new run from the first steps of another. Options may change, also the steps of a finished run."""

    def body(session: Session) -> dict[str, Any]:
        from zotune.history.branch import branch

        return branch(run, step, to, changed(changes or ()))

    execute(body, as_json)


def changed(pairs: Sequence[str]) -> dict[str, Any]:
    """`--set` as options: the names and values that the flags of `zotune train` take. Raises ConfigError."""
    given: dict[str, Any] = {}
    for text in pairs:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"--set is {text!r}. Remedy: write name=value, such as --set lr=1e-7.")
        given[name.strip().replace("-", "_")] = value
    own = sorted({*METHOD_FLAGS, "method_args"} & set(given))
    if own:
        raise ConfigError(
            f"{', '.join(own)} cannot be changed by a branch: the shared steps were taken with it. "
            "Remedy: start another run."
        )
    unknown = next((name for name in given if name not in OPTIONS), None)
    if unknown is not None:
        from zotune.arguments import nearest

        raise ConfigError(
            f"--set names the unknown option {unknown!r}.{nearest(unknown, OPTIONS)} Remedy: correct its name; the "
            "options stand in `zotune train --help`."
        )
    return values_of(given)
