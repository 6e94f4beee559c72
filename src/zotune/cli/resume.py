"""`zotune resume`: continue a run that was stopped."""

from __future__ import annotations

from typing import Any

from zotune.cli.frame import Json, RunArgument, Session, TrustRemoteCode, TrustReward, execute
from zotune.run import RunPaths


def command(
    run: RunArgument,
    trust_remote_code: TrustRemoteCode = False,
    trust_reward: TrustReward = False,
    as_json: Json = False,
) -> None:
    """Continue a run that was stopped or killed. It ends as if nothing had happened."""

    def body(session: Session) -> dict[str, Any]:
        paths = RunPaths(run)
        if not paths.config.exists():  # a config alone is enough: that run was stopped before its first step
            paths.check()
        session.run = run
        from zotune.train import resume

        return resume(run, session.watch, trust_remote_code=trust_remote_code, trust_reward=trust_reward)

    execute(body, as_json)
