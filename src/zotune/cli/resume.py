"""`zotune resume`: continue a run that was stopped."""

from __future__ import annotations

from typing import Any

from zotune.cli.frame import AllowTaskCode, Json, RunArgument, Session, TrustRemoteCode, TrustReward, execute
from zotune.run import RunPaths


def command(
    run: RunArgument,
    trust_remote_code: TrustRemoteCode = False,
    trust_reward: TrustReward = False,
    allow_task_code: AllowTaskCode = False,
    as_json: Json = False,
) -> None:
    """Continue a run that was stopped or killed. It ends as if nothing had happened."""

    def body(session: Session) -> dict[str, Any]:
        paths = RunPaths(run)
        session.run = run
        with session.joined() as group:
            if session.leads and not paths.config.exists():  # with a config alone it was stopped before its first step
                paths.check()
            from zotune.track import tracked_run
            from zotune.train import resume

            with tracked_run(paths, session.watch, session.leads) as watch:
                return resume(
                    run,
                    watch,
                    trust_remote_code=trust_remote_code,
                    trust_reward=trust_reward,
                    group=group,
                    allow_task_code=allow_task_code,
                )

    execute(body, as_json)
