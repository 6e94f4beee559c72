"""A program for tests/test_kill.py: real commands in forked children that are killed, so torch is imported only once.

    python killing.py JOB.json        prints one JSON object

The job names its kind (`random`, `points` or `signals`), a folder to work in, and the config file of a run. Forking is
safe here: one thread computes, and no child outlives its parent's wait.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from zotune import durable, journal, snapshot, train
from zotune.cli import main
from zotune.journal import HashRecord, Journal, StepRecord
from zotune.objective.label_words import LabelWords
from zotune.optimizer import ZerothOrder
from zotune.run import RunFolder
from zotune.session import Session

Patch = Callable[[], None]


def die(*_: Any, **__: Any) -> None:
    """SIGKILL to this very process: nothing is closed, flushed or cleaned up."""
    os.kill(os.getpid(), signal.SIGKILL)


def start(arguments: list[str], log: Path, patch: Patch | None = None) -> int:
    """A child that runs a command line; its pid. What it prints goes to `log`."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        # After a fork torch makes its thread pool anew at the first call that needs it; of two threads at once, as
        # when a model is loaded, one finds none ("Invalid thread pool!").
        torch.set_num_threads(torch.get_num_threads())
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        if patch is not None:
            patch()
        main(arguments)
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException as error:  # the parent reads it in the log
        os.write(2, repr(error).encode())
    finally:
        sys.stdout.flush()
        os._exit(code)


LIMIT = 300  # seconds after which a command on a tiny model hangs


def wait(pid: int) -> int:
    """The exit code of a child, or minus the number of the signal that ended it. What hangs is ended: -SIGALRM."""
    late = time.monotonic() + LIMIT
    while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > late:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return -signal.SIGALRM
        time.sleep(0.002)
    return os.waitstatus_to_exitcode(ended[1])


def state(run: Path) -> list[str]:
    """Everything that must be the same to the byte."""
    return [(run / name).read_bytes().hex() for name in ("journal.zoj", "metrics.jsonl")]


def train_command(job: dict[str, Any], run: Path) -> list[str]:
    return ["train", "--config", job["config"], "--output-dir", str(run)]


def next_command(job: dict[str, Any], run: Path) -> list[str]:
    """What a user would type now: the run is continued once its folder has a config."""
    return ["resume", str(run)] if (run / "config.yaml").exists() else train_command(job, run)


def finish(job: dict[str, Any], run: Path, log: Path) -> None:
    """Continue a run to its end, undisturbed."""
    code = wait(start(next_command(job, run), log))
    if code != 0:
        raise SystemExit(f"{run} ended with {code}: {log.read_text() if log.exists() else 'it did not begin'}")


def undisturbed(job: dict[str, Any], folder: Path, log: Path) -> Path:
    """The run to compare with. In this process, so that its children find every module imported."""
    run = folder / "whole"
    code = None
    with log.open("a") as file, contextlib.redirect_stderr(file), contextlib.redirect_stdout(file):
        try:
            main(train_command(job, run))
        except SystemExit as ended:
            code = ended.code
    if code != 0:
        raise SystemExit(f"{run} ended with {code}: {log.read_text() if log.exists() else 'it did not begin'}")
    return run


def randomly(job: dict[str, Any], folder: Path, log: Path) -> dict[str, Any]:
    """Kill at random moments, also while resuming, until `kills` children have died; then finish each run."""
    whole, draw = undisturbed(job, folder, log), random.Random(job["seed"])
    begun = time.perf_counter()
    finish(job, folder / "timed", log)
    seconds, last = time.perf_counter() - begun, steps_in(whole)
    kills = runs = 0
    steps: list[int] = []
    different = []
    while kills < job["kills"]:
        run = folder / f"run-{runs}"
        runs += 1
        for _ in range(draw.randint(3, 8)):
            left = 1 - 0.6 * max(0, steps_in(run)) / last  # a resumed run has less to do
            pid = start(next_command(job, run), log)
            time.sleep(draw.uniform(0, left * seconds))
            os.kill(pid, signal.SIGKILL)
            if wait(pid) != -signal.SIGKILL:  # it had ended before
                break
            kills += 1
            steps.append(steps_in(run))
        finish(job, run, log)
        if state(run) != state(whole):
            different.append(run.name)
    return {"kills": kills, "runs": runs, "different": different, "steps": steps, "seconds": seconds}


def steps_in(run: Path) -> int:
    """Steps in a run's journal; -1 before there is one."""
    path = run / "journal.zoj"
    return sum(isinstance(r, StepRecord) for r in journal.read(path)[1]) if path.exists() else -1


def on_call(owner: Any, name: str, count: int, before: bool = True, when: Callable[..., bool] | None = None) -> Patch:
    """Die at the `count`-th call of `owner.name` (among those that `when` accepts), before or after it."""

    def patch() -> None:
        inner, seen = getattr(owner, name), [0]

        def outer(*arguments: Any, **named: Any) -> Any:
            seen[0] += when is None or when(*arguments, **named)
            hit = seen[0] == count and (when is None or when(*arguments, **named))
            if hit and before:
                die()
            result = inner(*arguments, **named)
            if hit:
                die()
            return result

        setattr(owner, name, outer)

    return patch


def half_written(module: Any, count: int) -> Patch:
    """Die at the `count`-th `write_all` of a module, when half of the bytes are on their way."""

    def patch() -> None:
        inner, seen = module.write_all, [0]

        def outer(descriptor: int, data: bytes) -> None:
            seen[0] += 1
            if seen[0] == count:
                inner(descriptor, data[: len(data) // 2])
                die()
            inner(descriptor, data)

        module.write_all = outer

    return patch


def in_an_update(count: int, tensors: int, inside: bool = False) -> Patch:
    """Die in the `count`-th update of many tensors at which so many have new values, `inside` also half of the next."""

    def patch() -> None:
        inner, seen = torch._foreach_copy_, [0]

        def outer(into: list[torch.Tensor], values: list[torch.Tensor]) -> None:
            seen[0] += 1
            if seen[0] == count:
                for old, new in zip(into[:tensors], values, strict=False):
                    old.copy_(new)
                half = into[tensors].numel() // 2 if inside else 0
                into[tensors].view(-1)[:half].copy_(values[tensors].reshape(-1)[:half])
                die()
            inner(into, values)

        torch._foreach_copy_ = outer

    return patch


def is_hash(_: Journal, record: Any) -> bool:
    return isinstance(record, HashRecord)


def is_step(_: Journal, record: Any) -> bool:
    return isinstance(record, StepRecord)


def of_step(_: RunFolder, row: dict[str, Any]) -> bool:
    return "loss" in row


def of_eval(_: RunFolder, row: dict[str, Any]) -> bool:
    return "eval" in row


POINTS: dict[str, Patch] = {
    "folder made, config not yet written": on_call(durable.os, "replace", 2),
    "before the model is loaded": on_call(Session, "__init__", 1),
    "before the first evaluation": on_call(Session, "evaluate", 1),
    "after the first evaluation": on_call(RunFolder, "log_metrics", 1, before=False),
    "before the journal": on_call(Journal, "create", 1),
    "after the journal's header": on_call(Journal, "create", 1, before=False),
    "inside a forward pass": on_call(torch.nn.Linear, "forward", 300),
    "between two micro-batches": on_call(ZerothOrder, "estimate", 6),
    "before a record": on_call(Journal, "append", 3, when=is_step),
    "half a record": half_written(journal, 4),
    "after a record, before its update": on_call(ZerothOrder, "_apply", 3),
    "in an update, between two tensors": in_an_update(4, 7),
    "in an update, inside a tensor": in_an_update(3, 1, inside=True),
    "after an update": on_call(ZerothOrder, "_apply", 4, before=False),
    "before a metrics line": on_call(RunFolder, "log_metrics", 3, when=of_step),
    "half a metrics line": half_written(sys.modules["zotune.run"], 3),
    "before an evaluation": on_call(Session, "evaluate", 2),
    "inside an evaluation": on_call(LabelWords, "judge", 2),
    "before an evaluation's line": on_call(RunFolder, "log_metrics", 2, when=of_eval),
    "before a snapshot": on_call(RunFolder, "save_snapshot", 2),
    "in a snapshot, before its tensors": on_call(snapshot, "_write_tensors", 2),
    "in a snapshot, after its tensors": on_call(snapshot, "_write_tensors", 2, before=False),
    "in a snapshot, before its rename": on_call(snapshot.os, "rename", 2),
    "in a snapshot, before its marker": on_call(snapshot, "write_file", 4),
    "after a snapshot's marker, before older ones go": on_call(snapshot, "_prune", 3),
    "while an older snapshot is deleted": on_call(snapshot.shutil, "rmtree", 4),
    "between a snapshot and its hash": on_call(Journal, "append", 2, when=is_hash),
    "before the last hash": on_call(Journal, "append", 4, when=is_hash),
    "after the last hash": on_call(Journal, "append", 4, before=False, when=is_hash),
    "before the result": on_call(train, "before_and_after", 1),
}


def at_points(job: dict[str, Any], folder: Path, log: Path) -> dict[str, Any]:
    """Die at each point, twice: in the new run, and in the resumed one; then finish. How each went."""
    whole = undisturbed(job, folder, log)
    found = {}
    for number, (name, patch) in enumerate(POINTS.items()):
        run = folder / f"run-{number}"
        first = wait(start(train_command(job, run), log, patch))
        steps = steps_in(run)
        second = wait(start(next_command(job, run), log, patch))
        finish(job, run, log)
        ended = {-signal.SIGKILL: "killed", 0: "ended"}
        same = state(run) == state(whole) and not (run / "lock").exists()
        found[name] = {
            "first": ended.get(first, first),
            "second": ended.get(second, second),
            "steps": steps,
            "same": same,
        }
    return found


def by_signals(job: dict[str, Any], folder: Path, log: Path) -> dict[str, Any]:
    """SIGTERM and SIGINT to a run that is stepping: exit code, what it said, and how the resumed run ends."""
    whole, found = undisturbed(job, folder, log), {}
    for number in (signal.SIGTERM, signal.SIGINT):
        run, said = folder / number.name, folder / f"{number.name}.log"
        pid = start([*train_command(job, run), "--json"], said)
        while steps_in(run) < 2:
            time.sleep(0.01)
        os.kill(pid, number)
        code = wait(pid)
        stopped = steps_in(run)
        locked = (run / "lock").exists()
        finish(job, run, log)
        found[number.name] = {
            "code": code, "said": said.read_text(), "steps": stopped, "locked": locked, "run": str(run),
            "same": state(run) == state(whole),
        }  # fmt: skip
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    job = json.loads(Path(sys.argv[1]).read_text())
    folder = Path(job["folder"])
    folder.mkdir()
    kinds = {"random": randomly, "points": at_points, "signals": by_signals}
    print(json.dumps(kinds[job["kind"]](job, folder, folder / "log.txt")))
