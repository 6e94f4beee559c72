"""`zotune export`: a run's weights for other tools."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zotune.cli.frame import Json, RunArgument, Session, TrustRemoteCode, execute
from zotune.errors import ConfigError
from zotune.run import RunPaths

if TYPE_CHECKING:
    from zotune.export import Form


def command(
    run: RunArgument,
    to: Annotated[Path, typer.Option("--to", help="Folder to write.", show_default=False)],
    merge: Annotated[bool, typer.Option("--merge", help="A Hugging Face model, adapters folded in.")] = False,
    adapter: Annotated[bool, typer.Option("--adapter", help="A PEFT adapter (scope lora, prefix or prompt).")] = False,
    delta: Annotated[bool, typer.Option("--delta", help="Trained minus base weights, one safetensors file.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace what the folder holds.")] = False,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> None:
    """Write a run's weights for other tools. Without a form: the adapter that was trained, else a whole model."""

    def body(session: Session) -> dict[str, Any]:
        given: dict[Form, bool] = {"merge": merge, "adapter": adapter, "delta": delta}
        chosen = [form for form, wanted in given.items() if wanted]
        if len(chosen) > 1:
            raise ConfigError(f"--{chosen[0]} and --{chosen[1]} were given. Remedy: give one of them.")
        RunPaths(run).check()
        from zotune.export import export

        return export(run, to, session.watch, chosen[0] if chosen else None, force, trust_remote_code)

    execute(body, as_json)
