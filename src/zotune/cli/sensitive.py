"""`zotune sensitive`: find the weights that a text is most sensitive to, for --scope sensitive."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from zotune.cli.frame import Json, Session, execute
from zotune.cli.options import values_of, with_options

NAMES = (
    "model", "train", "data_format", "text_column", "label_column", "completion_column", "template", "label_words",
    "labels", "task", "data_dir", "data_seed", "train_rows", "max_length", "dtype", "device", "threads",
    "trust_remote_code",
)  # fmt: skip


@with_options(NAMES)
def command(
    to: Annotated[Path, typer.Option(help="File of the mask, safetensors.", show_default=False)],
    share: Annotated[float, typer.Option(help="Share of the linear weights.")] = 0.001,
    as_json: Json = False,
    **given: Any,
) -> None:
    """Find the linear weights that rows are most sensitive to (SensZOQ): a backward pass for each row, once."""

    def body(session: Session) -> dict[str, Any]:
        from zotune.resolve import resolve

        config = resolve({"output_dir": ".", "steps": 0, **values_of(given)}).absolute()
        from zotune.sensitive import find

        return find(config, share, to.absolute(), session.watch)

    execute(body, as_json)
