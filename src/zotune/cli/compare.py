"""`zotune compare`: zero-shot, demonstrations, a probe, methods and gradients on one config, in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from zotune.cli.frame import Json, Session, execute
from zotune.cli.options import METHOD_FLAGS, values_of, with_options
from zotune.config import OPTIONS


@with_options([*OPTIONS, *METHOD_FLAGS])
def command(
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="YAML file with the same names; flags win.", show_default=False),
    ] = None,
    rows: Annotated[
        str | None,
        typer.Option(
            "--rows",
            metavar="A,B,...",
            help="zero-shot, in-context, linear-probe, a method, adamw, sgd; or METHOD-SCOPE.",
            show_default=False,
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="ROW.NAME=VALUE", help="A row's own setting; repeatable.", show_default=False),
    ] = None,
    tune: Annotated[bool, typer.Option("--tune", help="Measure lr and eps of methods that have none.")] = False,
    as_json: Json = False,
    **given: Any,
) -> None:
    """Compare ways to use and to train a model. Same rows, a process for each; what is finished is kept."""

    def body(session: Session) -> dict[str, Any]:
        from zotune.resolve import resolve

        resolved = resolve(values_of(given), config).absolute()
        from zotune.comparison.compare import compare
        from zotune.comparison.rows import default_names, make_rows

        names = default_names(resolved) if rows is None else [name.strip() for name in rows.split(",")]
        return compare(resolved, make_rows(resolved, names, settings or (), tune), session.watch)

    execute(body, as_json, _show)


def _show(session: Session, found: dict[str, Any]) -> None:
    from zotune.comparison.table import lines

    for line in lines(found["rows"]):
        session.watch.say(line)
    session.watch.say(f"written to {Path(found['folder']) / 'compare.md'}")
