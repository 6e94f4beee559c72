"""The training loop: train and resume.

A run is its base model, its config and its journal. Data order, directions and learning rates are functions of
(seed, step), so a resumed run needs no other state; snapshots only shorten the way back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zotune.adapters import added_by
from zotune.advice import Advisor
from zotune.catch_up import catch_up, snapshot_of
from zotune.config import PLACES, TrainConfig
from zotune.distributed.sharded import gathered
from zotune.engines.served import server_of
from zotune.engines.server import Server
from zotune.errors import ConfigError, RunError
from zotune.header import check_parts
from zotune.heading import say_header, say_versions
from zotune.journal import HashRecord, Journal, StepRecord
from zotune.machine import peak_memory_bytes
from zotune.metrics import before_and_after, evaluate_now, is_due, live, log_step
from zotune.nonfinite import Skips
from zotune.objective.from_config import functions_of_run, given_functions
from zotune.objective.functions import Functions
from zotune.presets import preset, with_preset
from zotune.rebuild import current_sha256, steps_of
from zotune.resolve import check_files, config_of, resolve
from zotune.run import RunFolder, RunPaths
from zotune.session import Session, check_same
from zotune.shortage import explained
from zotune.virtual_tokens import write_start
from zotune.watch import Watch

if TYPE_CHECKING:
    from zotune.distributed.follower import FollowerFolder, FollowerJournal
    from zotune.distributed.group import Group
    from zotune.distributed.pool import Pool, Recorder

    Folder = RunFolder | FollowerFolder
    Log = Journal | FollowerJournal


def train(
    config: TrainConfig,
    watch: Watch,
    rewards: Callable[..., Any] | Sequence[Callable[..., Any]] = (),
    metric: Callable[..., Any] | None = None,
    group: Group | None = None,
    pool: Pool | None = None,
    server: Server | None = None,
) -> dict[str, Any]:
    """Run a new training run in `config.output_dir`, with the preset where it has no lr or eps. Returns steps,
    weights_sha256, journal_bytes, seconds, forwards (of the whole run's steps) and, with held-out rows, accuracy_before
    and accuracy_after (None where something else is measured), loss_before, loss_after, and so on for f1, exact_match,
    macro_f1, reward or metric.

    `rewards` or `metric` are functions in place of those that a config can name; code that it names is imported.
    `group`: the processes that share the work; all of them call this, and process 0 alone writes. `pool`: workers that
    evaluate the steps. `server`: scores the steps in place of the model, and stays open (`zotune.engines`).
    Raises UserError (a subclass) for anything the user can mend; what was recorded stays and can be resumed.
    """
    passed = given_functions(rewards, metric)
    if passed.reward:
        config = replace(config, reward=[each.name for each in passed.reward])
    if passed.metric is not None:
        config = replace(config, metric=passed.metric.name)
    return _begin(with_preset(config), watch, passed if passed.all() else None, group, pool, server)


def _begin(
    config: TrainConfig,
    watch: Watch,
    functions: Functions | None,
    group: Group | None,
    pool: Pool | None = None,
    server: Server | None = None,
) -> dict[str, Any]:
    config = config.absolute()
    with server_of(config, server, alone=group is None and pool is None) as server, _created(config, group) as folder:
        session = Session(config, functions=functions, group=group, pool=pool, server=server)
        with explained(session):
            header = _agreed(session.begin())
            if added_by(config.scope) == "prefix" and isinstance(folder, RunFolder):
                write_start(folder.paths.start, session.model)
            terms = say_header(session, watch)
            # The first evaluation comes before the journal: a run that has one has begun.
            evaluate_now(session, folder, watch)
            with _journal(folder, header) as journal:
                return _loop(session, folder, journal, watch) | terms


def resume(
    run: str | Path,
    watch: Watch,
    trust_remote_code: bool = False,
    trust_reward: bool = False,
    rewards: Callable[..., Any] | Sequence[Callable[..., Any]] = (),
    metric: Callable[..., Any] | None = None,
    group: Group | None = None,
    allow_task_code: bool = False,
    places: Mapping[str, Any] | None = None,
    pool: Pool | None = None,
    server: Server | None = None,
) -> dict[str, Any]:
    """Continue an interrupted run to its last step; returns what `train` returns. A finished run changes nothing.

    `places`: options that a run may go on with other values of (config.PLACES), such as rows_per_forward, this time.
    Functions that the run's config names are imported only with `trust_reward`; `rewards` or `metric` stand for them.
    `trust_remote_code` and `allow_task_code` allow what no config can.
    With a `group`, process 0 reads the run and tells the others. Raises RunError when the base model, the rows or the
    config are no longer those of the run.
    """
    paths = RunPaths(run)
    passed = given_functions(rewards, metric)
    places = _allowed(places or {})
    if group is not None and group.rank:
        return _follow(
            paths,
            watch,
            {"trust_remote_code": trust_remote_code, "allow_task_code": allow_task_code},
            lambda config: functions_of_run(config, trust_reward, passed),
            group,
            places,
        )
    paths.refuse_links()
    if paths.config.exists() and not paths.journal.exists():
        if paths.holds_run():
            raise RunError(f"{paths.folder} has lost its {paths.journal.name}. Remedy: restore it from a copy.")
        watch.say("The run was stopped before its first step: it starts anew.")
        config = replace(config_of(paths, trust_remote_code, allow_task_code), **places)
        check_files(config)
        functions = functions_of_run(config, trust_reward, passed)
        _tell(group, paths)
        return _begin(config, watch, functions, group, pool, server)
    with RunFolder.open(run) as folder, Journal.append_to(paths.journal) as journal:
        config = replace(config_of(paths, trust_remote_code, allow_task_code), **places)
        check_files(config)
        functions = functions_of_run(config, trust_reward, passed)
        _tell(group, paths)
        return _continue(config, folder, journal, watch, functions, group, pool, server)


def _allowed(places: Mapping[str, Any]) -> dict[str, Any]:
    """The options as given. Raises ConfigError for one that a run cannot go on with another value of."""
    wrong = [name for name in places if name not in PLACES]
    if wrong:
        raise ConfigError(
            f"{wrong[0]} cannot change within a run. Remedy: one of {', '.join(PLACES)}; or `zotune branch`."
        )
    return dict(places)


def _tell(group: Group | None, paths: RunPaths) -> None:
    if group is not None:
        from zotune.distributed.follower import tell

        tell(group, paths)


def _follow(
    paths: RunPaths,
    watch: Watch,
    allowed: dict[str, bool],
    functions_of: Callable[[TrainConfig], Functions],
    group: Group,
    places: Mapping[str, Any],
) -> dict[str, Any]:
    """`resume` in a process that writes nothing: the run is what process 0 tells of it."""
    from zotune.distributed.follower import told

    values, folder, journal = told(group, paths)
    config = resolve({**values, "output_dir": paths.folder, **allowed, **places})
    functions = functions_of(config)
    if journal is None:
        return _begin(config, watch, functions, group)
    return _continue(config, folder, journal, watch, functions, group)


def _continue(
    config: TrainConfig,
    folder: Folder,
    journal: Log,
    watch: Watch,
    functions: Functions | None,
    group: Group | None,
    pool: Pool | None = None,
    server: Server | None = None,
) -> dict[str, Any]:
    check_parts(journal.header)
    with server_of(config, server, alone=group is None and pool is None) as server:
        session = Session(config, functions=functions, group=group, pool=pool, server=server)
        with explained(session):
            header = _agreed(session.begin())
            check_same(journal.header, header, folder.paths)
            say_versions(journal.header, header, watch)
            terms = say_header(session, watch)
            catch_up(session, folder, journal, watch)
            return _loop(session, folder, journal, watch) | terms


def _created(config: TrainConfig, group: Group | None) -> Folder:
    if group is None or group.rank == 0:
        return RunFolder.create(config.output_dir, config.to_yaml())
    from zotune.distributed.follower import FollowerFolder

    return FollowerFolder(RunPaths(config.output_dir))


def _journal(folder: Folder, header: dict[str, Any]) -> Log:
    if isinstance(folder, RunFolder):
        return Journal.create(folder.paths.journal, header)
    from zotune.distributed.follower import FollowerJournal

    return FollowerJournal(header)


def _agreed(session: Session) -> dict[str, Any]:
    """The journal's header; the processes of a group must all have the same."""
    header = session.header()
    if session.group is not None:
        from zotune.distributed.agreement import agree_on_run

        agree_on_run(session.group, header | {"lanes": session.optimizer.evaluator.mode})
    return header


def _hashed(session: Session) -> str:
    """The hash of the weights now; the processes of a group must all have the same."""
    sha256 = current_sha256(session.optimizer)
    if session.group is not None:
        from zotune.distributed.agreement import agree

        agree(session.group, sha256, f"the weights after {session.optimizer.steps} steps")
    return sha256


def _loop(session: Session, folder: Folder, journal: Log | Recorder, watch: Watch) -> dict[str, Any]:
    config, optimizer = session.config, session.optimizer
    if session.pool is not None and isinstance(journal, Journal):
        journal = session.pool.recording(session, journal)
    if session.server is not None and isinstance(journal, Journal):
        journal = session.server.recording(journal)
    written: list[StepRecord] = []
    hashed = {record.step for record in journal.records if isinstance(record, HashRecord)}

    def record(step: StepRecord) -> None:
        journal.append(step)
        written.append(step)

    optimizer.record = record
    skips = Skips(config.on_nonfinite, steps_of(list(journal.records)))
    advisor = Advisor(watch.say, preset(config.method, config.scope))
    spent = 0.0  # seconds of training: evaluations and snapshots are not counted
    _mark(session, folder, journal, hashed)
    with _stopping_together(session):
        while optimizer.steps < config.steps:
            start = time.perf_counter()
            before = optimizer.evaluator.forwards
            with skips.guard(optimizer, record, watch):
                session.step()
            seconds = time.perf_counter() - start
            spent += seconds
            advisor.see(written[-1], written[-1].lrs[0])
            loss = log_step(session, folder, written[-1])
            found = live(session, written.pop(), seconds, optimizer.evaluator.forwards - before)
            watch.step(optimizer.steps, config.steps, loss, seconds, found)
            if is_due(session, optimizer.steps):
                evaluate_now(session, folder, watch)
            _mark(session, folder, journal, hashed)
    sha256 = _hashed(session)
    if optimizer.steps not in hashed:
        journal.append(HashRecord(optimizer.steps, sha256))
    peak = peak_memory_bytes(session.device)
    folder.log_timing({"steps": optimizer.steps, "seconds": round(spent, 3), "peak_memory_bytes": peak})
    result = {
        "steps": optimizer.steps,
        "weights_sha256": sha256,
        "journal_bytes": journal.size,
        "seconds": spent,
        "peak_memory_bytes": peak,
        "forwards": session.forwards(optimizer.steps),
    }
    return result | _shared(session, watch) | before_and_after(folder) | {"run": str(folder.path)}


def _shared(session: Session, watch: Watch) -> dict[str, Any]:
    """What sharing the work took, which is said as well."""
    found: dict[str, Any] = {}
    if session.group is not None:
        watch.say(f"Each process sent {session.group.message_bytes} bytes a step to each other.")
        found |= {"processes": session.group.size, "message_bytes": session.group.message_bytes}
    if session.pool is not None:
        watch.say(session.pool.says())
        found |= session.pool.counted()
    return found


def _stopping_together(session: Session) -> AbstractContextManager[None]:
    sharded = bool(session.optimizer.perturber.sharding)
    return session.group.stopping_together() if session.group is not None and sharded else nullcontext()


def _mark(session: Session, folder: Folder, journal: Log | Recorder, hashed: set[int]) -> None:
    """Every `snapshot_every` steps: the snapshot first, then the hash that says it should be there."""
    step = session.optimizer.steps
    if step and step % session.config.snapshot_every == 0 and step not in hashed:
        sha256 = _hashed(session)  # folds: a snapshot holds whole weights
        leads = session.group is None or session.group.rank == 0
        tensors = gathered(session.optimizer.weights(), leads)
        folder.save_snapshot(step, *snapshot_of(session, tensors, sha256))
        journal.append(HashRecord(step, sha256))
        hashed.add(step)
