"""`zotune data`: what a run would read, before it runs."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zotune.cli.frame import Json, Session, execute
from zotune.cli.options import values_of, with_options
from zotune.errors import ConfigError

if TYPE_CHECKING:
    from rich.text import Text

NAMES = (
    "model", "data_format", "text_column", "label_column", "completion_column", "template", "label_words", "labels",
    "objective", "reward", "reward_weights", "metric", "max_new_tokens", "temperature", "stop", "task", "data_dir",
    "data_seed", "shots", "train_rows", "max_length",
    "trust_remote_code", "allow_task_code",
)  # fmt: skip


@with_options(NAMES)
def command(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Rows to look at; or --task.", show_default=False)
    ] = None,
    as_json: Json = False,
    **given: Any,
) -> None:
    """Show what a run would read: shape, rows as tokens, what is scored. With --model, for its tokenizer."""

    def body(session: Session) -> dict[str, Any]:
        from zotune.data.look import look
        from zotune.resolve import resolve

        values = values_of(given)
        if (file is None) == ("task" not in values):
            raise ConfigError("give either FILE or --task. Remedy: name one of them.")
        rows = {} if file is None else {"train": file}
        return look(resolve({"model": "", "output_dir": ".", "steps": 0, **rows, **values}).absolute())

    execute(body, as_json, _show)


def _show(session: Session, found: dict[str, Any]) -> None:
    from rich.console import Console

    # Colour where stdout is a terminal and NO_COLOR is not set; brackets elsewhere.
    console = Console(file=sys.stdout, highlight=False, markup=False, soft_wrap=True)
    coloured = console.is_terminal and not console.no_color
    session.watch.header(dict(_summary(found)))
    for number, example in enumerate(found["examples"], start=1):
        session.watch.say(f"--- row {number}")
        if "options" in example:
            console.print(_drawn(example, coloured))
        else:
            for name, value in example.get("row", example).items():
                session.watch.say(f"{name}: {value!r}")


def _summary(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    from zotune.advice import check_words

    yield "data", f"{found['data']}, {found['rows']:,} rows"
    yield "shape", found["shape"]
    yield "columns", ", ".join(found["columns"])
    if "lengths" not in found:
        yield "tokens", "not known without --model"
        return
    lengths = found["lengths"]
    yield "tokens", f"{lengths['shortest']} to {lengths['longest']} a row, half of them up to {lengths['median']:g}"
    yield "cut", f"{found['cut']} of {found['rows']} rows do not fit max_length {found['max_length']}"
    if "objective" in found:
        yield "objective", found["objective"]
    else:
        yield "scored", f"{found['scored']:,} tokens that are right"
    options = found.get("label_tokens", ())
    told = check_words([option["text"].strip() for option in options], [option["ids"] for option in options])
    if told:
        yield "note", told
    for option, count in zip(options, found.get("labels", ()), strict=True):
        yield repr(option["text"]), f"{' '.join(option['tokens'])} {option['ids']}, {count} rows"


def _drawn(example: Mapping[str, Any], coloured: bool) -> Text:
    """The prompt plain, what is scored in green where it is right and in yellow elsewhere."""
    from rich.text import Text

    drawn = Text("..." if example["cut"] else "")
    _add(drawn, example["prompt"], "cyan", coloured)
    several = len(example["options"]) > 1
    for index, option in enumerate(example["options"]):
        if several:
            drawn.append(f"\n  {'>' if index in example['right'] else ' '} ")
        _add(drawn, option, "green" if index in example["right"] else "yellow", coloured)
    return drawn


def _add(drawn: Text, pieces: Sequence[Sequence[Any]], colour: str, coloured: bool) -> None:
    """Scored tokens in colour, every second one underlined so that their borders show; without colour in brackets."""
    for place, (text, _, scored) in enumerate(pieces):
        if not scored:
            drawn.append(text)
        elif coloured:
            drawn.append(text, f"{colour} underline" if place % 2 else colour)
        else:
            drawn.append(f"[{text}]")
