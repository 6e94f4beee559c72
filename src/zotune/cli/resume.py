"""`zotune resume`: continue a run that was stopped."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from zotune.cli.frame import AllowTaskCode, Json, RunArgument, Session, TrustRemoteCode, TrustReward, execute
from zotune.cli.summary import show_run
from zotune.run import RunPaths


def command(
    run: RunArgument,
    trust_remote_code: TrustRemoteCode = False,
    trust_reward: TrustReward = False,
    allow_task_code: AllowTaskCode = False,
    rows_per_forward: Annotated[
        int | None, typer.Option(help="Evaluate in parts of so many rows: less memory, same steps.", min=1)
    ] = None,
    eval_batch_size: Annotated[int | None, typer.Option(help="Examples per forward when evaluating.", min=1)] = None,
    offload: Annotated[
        str | None, typer.Option(help="Where blocks wait that do not fit: cpu or disk.", show_default=False)
    ] = None,
    scorer: Annotated[
        str | None, typer.Option(help="What gives the losses from here on: torch or vllm.", show_default=False)
    ] = None,
    reuse_mb: Annotated[
        int | None, typer.Option(help="MB for activations below the scope that are kept; 0: none.", min=0)
    ] = None,
    track: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            help="Trackers to tell from here on. Those that the run's config names are not started unasked.",
            show_default=False,
        ),
    ] = None,
    graphs: Annotated[
        str | None, typer.Option(help="Record forwards as CUDA graphs: auto, on or off.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Continue a run that was stopped or killed. It ends as if nothing had happened."""

    def body(session: Session) -> dict[str, Any]:
        paths = RunPaths(run)
        given = {
            "rows_per_forward": rows_per_forward,
            "eval_batch_size": eval_batch_size,
            "reuse_mb": reuse_mb,
            "offload": offload,
            "scorer": scorer,
            "graphs": graphs,
        }
        places = {name: value for name, value in given.items() if value is not None}
        session.run = run
        with session.joined() as group:
            paths.refuse_links()  # before anything reads the run
            if session.leads and not paths.config.exists():  # with a config alone it was stopped before its first step
                paths.check()
            from zotune.track import tracked_run
            from zotune.train import resume

            named = None if track is None else [name.strip() for name in track.split(",") if name.strip()]
            with tracked_run(paths, session.watch, named, session.leads) as watch:
                return resume(
                    run,
                    watch,
                    trust_remote_code=trust_remote_code,
                    trust_reward=trust_reward,
                    group=group,
                    places=places,
                    allow_task_code=allow_task_code,
                )

    execute(body, as_json, show_run)
