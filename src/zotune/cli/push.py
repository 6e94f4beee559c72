"""`zotune push`: a run on the hub, with its journal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zotune.cli.frame import Json, RunArgument, Session, TrustRemoteCode, execute
from zotune.errors import ConfigError
from zotune.run import RunPaths

if TYPE_CHECKING:
    from zotune.push import Content


def command(
    run: RunArgument,
    repo: Annotated[str, typer.Argument(metavar="USER/NAME", help="Repository on the hub.", show_default=False)],
    merge: Annotated[bool, typer.Option("--merge", help="A Hugging Face model, adapters folded in.")] = False,
    adapter: Annotated[bool, typer.Option("--adapter", help="A PEFT adapter (scope lora, prefix or prompt).")] = False,
    delta: Annotated[bool, typer.Option("--delta", help="Trained minus base weights, one safetensors file.")] = False,
    journal: Annotated[bool, typer.Option("--journal", help="No weights: the journal rebuilds them.")] = False,
    private: Annotated[bool, typer.Option("--private", help="Make a private repository.")] = False,
    to: Annotated[
        Path | None, typer.Option("--to", help="Write the folder here instead of uploading it.", show_default=False)
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> None:
    """Upload a run to the hub: weights, model card, and the journal that anyone can replay."""

    def body(session: Session) -> dict[str, Any]:
        given: dict[Content, bool] = {"merge": merge, "adapter": adapter, "delta": delta, "journal": journal}
        chosen = [content for content, wanted in given.items() if wanted]
        if len(chosen) > 1:
            raise ConfigError(f"--{chosen[0]} and --{chosen[1]} were given. Remedy: give one of them.")
        RunPaths(run).check()
        from zotune.push import push

        return push(run, repo, session.watch, chosen[0] if chosen else None, private, to, trust_remote_code)

    execute(body, as_json)
