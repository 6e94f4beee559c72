"""A program for the tests of this folder: groups of forked processes, so that torch is imported only once.

    python crowd.py KIND JOB.json        prints one JSON object

Every process is what torchrun would start: it finds its rank in the environment and runs a real command. The job holds
a folder to work in and the path of a run's config. Forking is safe: one thread computes here, and no child outlives
its parent's wait.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import zotune
import zotune.session
from zotune.cli import main
from zotune.distributed import group
from zotune.distributed.group import Group
from zotune.errors import RunError, UserError
from zotune.journal import Journal, StepRecord
from zotune.journal import read as read_journal
from zotune.noise import Key
from zotune.objective.label_words import LabelWords
from zotune.optimizer import ZerothOrder
from zotune.session import Session
from zotune.updates import Updates

Act = Callable[[int], None]
SECONDS = 60.0  # after which a group hangs


def crowd(size: int, act: Act, log: Path, restart: int = 0, after: Callable[[list[int]], None] | None = None) -> Any:
    """Run `act(rank)` in `size` processes that can form a group: their exit codes, "hangs" for one that was ended.

    `after(pids)` is called once all have begun.
    """
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    pids = []
    for rank in range(size):
        around = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
        around["TORCHELASTIC_RESTART_COUNT"] = restart
        pid = os.fork()
        if not pid:
            os.environ |= {key: str(value) for key, value in around.items()} | {"MASTER_ADDR": "127.0.0.1"}
            child(act, rank, Path(f"{log}-{rank}"))
        pids.append(pid)
    if after is not None:
        after(pids)
    codes: dict[int, Any] = {}
    end = time.monotonic() + SECONDS
    while len(codes) < size:
        for pid in set(pids) - set(codes):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                codes[pid] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > end:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                codes[pid] = "hangs"
        time.sleep(0.005)
    return [codes[pid] for pid in pids]


def child(act: Act, rank: int, log: Path) -> None:
    """Never returns."""
    code = 70
    try:
        for number in (1, 2):
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        torch.set_num_threads(torch.get_num_threads())  # as in tests/killing.py
        act(rank)
        code = 0
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException as error:  # the parent reads it in the log
        os.write(2, repr(error).encode())
    finally:
        sys.stdout.flush()
        os._exit(code)


def command(job: dict[str, Any], run: Path, *flags: str, verb: str = "train") -> Act:
    """An act that runs a command line."""
    words = [verb, str(run)] if verb == "resume" else [verb, "--config", job["config"], "--output-dir", str(run)]
    return lambda _: main([*words, *flags])


def alone(job: dict[str, Any], run: Path, *flags: str) -> Path:
    """The run of a single process. The first one is in this process: its children find every module imported."""
    log = run.with_suffix(".log")
    with log.open("a") as file, contextlib.redirect_stderr(file), contextlib.redirect_stdout(file):
        try:
            command(job, run, *flags)(0)
        except SystemExit as ended:
            if ended.code:
                raise SystemExit(f"{run} ended with {ended.code}: {log.read_text()}") from None
    return run


def same(a: Path, b: Path) -> bool:
    """Whether two runs have the same journal and the same metrics, to the byte."""
    return all((a / name).read_bytes() == (b / name).read_bytes() for name in ("journal.zoj", "metrics.jsonl"))


def steps_in(run: Path) -> int:
    """Steps in the journal; -1 without one."""
    if not (run / "journal.zoj").exists():
        return -1
    return sum(isinstance(record, StepRecord) for record in read_journal(run / "journal.zoj")[1])


def said(log: Path, size: int) -> list[str]:
    """What each process printed."""
    return [Path(f"{log}-{rank}").read_text() for rank in range(size)]


# --- the same bytes in groups of any size


def courses(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Each course alone and in groups: whether the bytes are the same, and the bytes of a message."""
    found: dict[str, Any] = {}
    for name, (sizes, flags) in job["courses"].items():
        whole, found[name] = alone(job, folder / f"{name}-1", *flags), {}
        for size in sizes:
            run, log = folder / f"{name}-{size}", folder / f"{name}-{size}.log"
            codes = crowd(size, command(job, run, *flags, "--json"), log)
            if any(codes):
                found[name][size] = {"codes": codes, "said": said(log, size)}
                continue
            outputs = said(log, size)
            result = json.loads(outputs[0].splitlines()[-1])
            found[name][size] = {
                "same": same(run, whole),
                "silent": not any(line.startswith("{") for text in outputs[1:] for line in text.splitlines()),
                "processes": result["processes"],
                "message_bytes": result["message_bytes"],
                "left": sorted(path.name for path in run.iterdir()) != sorted(path.name for path in whole.iterdir()),
            }
    return found


def trainers(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """transformers' Trainer in two processes, and in one that takes the rows of both before each step."""
    import transformers
    from shards import model

    from zotune.hf import Trainer

    def trained(accumulation: int, shared: bool, parallel: Any = None) -> dict[str, Any]:
        ids = torch.randint(3, 60, (24, 6), generator=torch.Generator().manual_seed(2))
        labels = ids.clone()
        labels[1::2, :3] = -100  # micro-batches of several weights
        labels[4:6] = -100  # and one of none
        usual = {"max_steps": 4, "per_device_train_batch_size": 2, "logging_steps": 1, "seed": 3}
        quiet = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}
        more = {"ddp_backend": "gloo"} if shared else {}
        args = transformers.TrainingArguments(
            str(folder / "trainer"), **usual, **quiet, **more, gradient_accumulation_steps=accumulation
        )
        made = model()
        optimizer = zotune.LoZO(made, lr=1e-2, eps=1e-2, seed=5, parallel=parallel)
        rows = [{"input_ids": row, "labels": label} for row, label in zip(ids, labels, strict=True)]
        trainer = Trainer(model=made, args=args, train_dataset=rows, optimizers=(optimizer, None))
        trainer.train()
        losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        return {"sha256": zotune.weights_sha256(dict(made.named_parameters())), "losses": losses}

    def act(rank: int) -> None:
        print(json.dumps(trained(1, True)))

    def refused(rank: int) -> None:
        import torch.distributed as dist

        dist.init_process_group("gloo")
        try:
            trained(1, True, zotune.Parallel("data"))
        except UserError as error:
            print(json.dumps({"error": str(error)}))

    found: dict[str, Any] = {"alone": trained(2, False)}
    for name, what in (("shared", act), ("refused", refused)):
        codes = crowd(2, what, folder / f"{name}.log")
        found[name] = {
            "codes": codes,
            "found": [json.loads(t.splitlines()[-1]) for t in said(folder / f"{name}.log", 2)],
        }
    return found


# --- kills and restarts


def before_step(rank: int, step: int, what: Callable[[], Any]) -> Act:
    """Do something in one process when it is about to take a step."""

    def patch(own: int) -> None:
        stepping = Session.step

        def patched(session: Session) -> None:
            if session.optimizer.steps == step:
                what()
            stepping(session)

        if own == rank:
            Session.step = patched  # type: ignore[method-assign]

    return patch


def die() -> None:
    """SIGKILL to this very process."""
    os.kill(os.getpid(), signal.SIGKILL)


def kills(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """One process dies; the group is started again as torchrun does, with the same command."""
    whole, found = alone(job, folder / "whole"), {}

    def dying_at(place: str, rank: int) -> Act:
        def patch(own: int) -> None:
            if own == rank and place == "before a record":
                appending = Journal.append

                def append(journal: Journal, record: Any) -> None:
                    if record.step == 3:
                        die()
                    appending(journal, record)

                Journal.append = append  # type: ignore[method-assign]
            elif own == rank and place == "in an update":
                applying = Updates.apply

                def apply(updates: Updates, key: Key, *given: Any, **named: Any) -> None:
                    if key.step == 3:
                        die()
                    applying(updates, key, *given, **named)

                Updates.apply = apply  # type: ignore[method-assign]

        return patch

    places = {
        "process 0 before step 0": before_step(0, 0, die),
        "process 0 before step 3": before_step(0, 3, die),
        "process 1 before step 5": before_step(1, 5, die),
        "process 0 before a record": dying_at("before a record", 0),
        "process 0 in an update": dying_at("in an update", 0),
    }
    for number, (name, patch) in enumerate(places.items()):
        run, log = folder / f"run-{number}", folder / f"run-{number}.log"

        def first(rank: int, patch: Act = patch, run: Path = run) -> None:
            patch(rank)
            command(job, run)(rank)

        codes = crowd(2, first, log)
        steps = steps_in(run)
        again = crowd(2, command(job, run), log, restart=1)
        found[name] = {"codes": codes, "steps": steps, "again": again, "same": again == [0, 0] and same(run, whole)}
    # Without a restart the folder is refused, by all; in a restart with other options, too.
    run = folder / "run-0"
    found["refused"] = {
        "without a restart": crowd(2, command(job, run), folder / "refused.log"),
        "other options": crowd(2, command(job, run, "--lr", "0.5"), folder / "other.log", restart=1),
        "said": said(folder / "refused.log", 2),
        "same": same(run, whole),
    }
    # `resume` by a group of another size, of a run that one process began.
    half = folder / "half"
    code = crowd(1, lambda rank: (before_step(0, 4, die)(rank), command(job, half)(rank)), folder / "half.log")
    again = crowd(4, command(job, half, verb="resume"), folder / "half.log")
    found["resumed by four"] = {"codes": code, "steps": 4, "again": again, "same": same(half, whole)}
    return found


# --- what goes wrong in one process


def failures(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """For each failure: exit codes, what was said, steps in the journal."""
    found: dict[str, Any] = {}
    alone(job, folder / "whole")

    def judged(rank: int, what: Callable[[Any], Any]) -> Act:
        """Another loss, or an error, in one process from step 3 on."""

        def patch(own: int) -> None:
            calling = LabelWords.__call__

            def patched(objective: LabelWords, model: nn.Module, batch: Any) -> Any:
                return (
                    what(calling(objective, model, batch))
                    if steps.get("now", 0) >= 3
                    else calling(objective, model, batch)
                )

            steps: dict[str, int] = {}
            stepping = Session.step

            def counted(session: Session) -> None:
                steps["now"] = session.optimizer.steps
                stepping(session)

            if own == rank:
                LabelWords.__call__, Session.step = patched, counted  # type: ignore[method-assign]

        return patch

    def refuse(_: Any) -> Any:
        raise UserError("the reward is a sock. Remedy: another reward.")

    def break_down(_: Any) -> Any:
        raise RuntimeError("a bug")

    def full_disk(own: int) -> None:
        appending = Journal.append

        def append(journal: Journal, record: Any) -> None:
            if record.step == 3:
                raise RunError("the disk is full. Remedy: free space.")
            appending(journal, record)

        if own == 0:
            Journal.append = append  # type: ignore[method-assign]

    def altered(own: int) -> None:
        def alter() -> None:
            for each in altered_sessions:
                target = each.optimizer.perturber.targets()[-1]
                target.data.view(-1)[-1] += 1e-3

        altered_sessions: list[Session] = []
        beginning = Session.begin

        def begin(session: Session) -> Session:
            altered_sessions.append(session)
            return beginning(session)

        if own == 1:
            Session.begin = begin  # type: ignore[method-assign]
            before_step(1, 3, alter)(own)

    cases: dict[str, tuple[int, Act, list[str]]] = {
        "a loss is not finite": (2, judged(1, lambda losses: losses * torch.nan), []),
        "a user's error": (2, judged(1, refuse), []),
        "a user's error in process 0": (2, judged(0, refuse), []),
        "a bug": (2, judged(1, break_down), []),
        "a full disk": (2, full_disk, []),
        "weights that part": (3, altered, ["--check-every", "2"]),
        "weights that part, two processes": (2, altered, ["--check-every", "4"]),
        "an option": (2, lambda _: None, ["--labels", "0"]),
        "no work": (4, lambda _: None, ["--micro-batch-size", "8"]),
        "lanes": (2, lambda _: None, ["--lanes", "on", "--parallel", "signs"]),
        "another base": (2, lambda own: other_base(job, own), []),
    }  # fmt: skip
    for number, (name, (size, patch, flags)) in enumerate(cases.items()):
        run, log = folder / f"run-{number}", folder / f"run-{number}.log"

        def act(rank: int, patch: Act = patch, run: Path = run, flags: list[str] = flags) -> None:
            patch(rank)
            command(job, run, *flags)(rank)

        begun = time.monotonic()
        codes = crowd(size, act, log)
        seconds = time.monotonic() - begun
        found[name] = {"codes": codes, "steps": steps_in(run), "said": said(log, size), "seconds": seconds}
        found[name]["locked"] = (run / "lock").exists()
    # Left out by all, where the policy says so: the group's journal is that of one process.
    one, two = folder / "skip-1", folder / "skip-2"

    def skipping(run: Path) -> Act:
        return lambda rank: (third_is_bad(rank), command(job, run, "--on-nonfinite", "skip")(rank))[0]

    codes = [*crowd(1, skipping(one), folder / "skip-1.log"), *crowd(2, skipping(two), folder / "skip-2.log")]
    found["left out"] = {"codes": codes, "same": same(one, two), "steps": steps_in(two)}
    return found


def alone_in_a_shard(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """One process of a sharded model fails in a forward, where the other waits for its weights; then all fail alike."""
    found: dict[str, Any] = {}

    def failing(rank: int, run: Path) -> Act:
        calling, calls = LabelWords.__call__, [0]

        def patched(objective: LabelWords, model: nn.Module, batch: Any) -> Any:
            calls[0] += batch["input_ids"].device.type != "meta"  # the forecast's are none
            if calls[0] == 20:
                raise UserError("the reward is a sock. Remedy: another reward.")
            return calling(objective, model, batch)

        def act(own: int) -> None:
            group.PATIENCE = 2.0
            if own == rank:
                LabelWords.__call__ = patched  # type: ignore[method-assign]
            command(job, run, "--parallel", job["parallel"])(own)

        return act

    for rank in (0, 1):
        run, log = folder / f"run-{rank}", folder / f"run-{rank}.log"
        begun = time.monotonic()
        codes = crowd(2, failing(rank, run), log)
        found[f"process {rank}"] = {"codes": codes, "seconds": time.monotonic() - begun, "said": said(log, 2)}
        found[f"process {rank}"]["steps"] = steps_in(run)
    one, two = folder / "skip-1", folder / "skip-2"
    flags = ("--on-nonfinite", "skip")
    codes = crowd(1, lambda rank: (third_is_bad(rank), command(job, one, *flags)(rank))[0], folder / "skip-1.log")
    flags += ("--parallel", job["parallel"])
    codes += crowd(2, lambda rank: (third_is_bad(rank), command(job, two, *flags)(rank))[0], folder / "skip-2.log")
    return found | {"left out": {"codes": codes, "same": same(one, two)}}


def third_is_bad(_: int) -> None:
    """Step 3 has losses that are not finite."""
    estimating = ZerothOrder.estimate

    def estimate(optimizer: ZerothOrder, objective: Any, batch: Any = None, **given: Any) -> float:
        bad = (lambda model, rows: objective(model, rows) * torch.nan) if optimizer.steps == 3 else objective
        return estimating(optimizer, bad, batch, **given)

    ZerothOrder.estimate = estimate  # type: ignore[method-assign]


def other_base(job: dict[str, Any], rank: int) -> None:
    """One process finds another model under the same name."""
    loading = zotune.session.load_model

    def load(*given: Any) -> nn.Module:
        model = loading(*given)
        with torch.no_grad():
            next(model.parameters()).view(-1)[0] += 1.0
        return model

    if rank == 1:
        zotune.session.load_model = load


def signals(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A signal to one process or to all, in the midst of the steps; then `resume`."""
    whole, found = alone(job, folder / "whole"), {}
    for number, everyone in (
        (signal.SIGTERM, True),
        (signal.SIGTERM, False),
        (signal.SIGINT, True),
        (signal.SIGINT, False),
    ):
        name = f"{number.name} to {'all' if everyone else 'process 1'}"
        run, log = folder / name.replace(" ", "-"), folder / f"{name}.log".replace(" ", "-")
        when: dict[str, Any] = {}

        def stop(
            pids: list[int], run: Path = run, number: int = number, everyone: bool = everyone, when: Any = when
        ) -> None:
            while steps_in(run) < 3:
                time.sleep(0.002)
            for pid in pids if everyone else pids[1:]:
                os.kill(pid, number)
            when["steps"] = steps_in(run)

        codes = crowd(2, command(job, run), log, after=stop)
        steps = steps_in(run)
        again = crowd(2, command(job, run, verb="resume"), log)
        found[name] = {
            "codes": codes, "late": steps - when["steps"], "steps": steps, "again": again, "same": same(run, whole),
            "locked": (run / "lock").exists(), "said": said(log, 2),
        }  # fmt: skip
    return found


# --- from Python, in a process group that the script has initialised


def own_script(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """An optimizer in a loop of one's own: what each process found, and what one process finds."""

    def trained(parallel: zotune.Parallel | None, closures: bool, alter: int = 0) -> dict[str, Any]:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
            rows = [{"x": torch.randn(4, 6), "y": torch.randint(3, (4,))} for _ in range(12)]
        rows[0]["x"] += alter

        def loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            return nn.functional.cross_entropy(model(batch["x"]), batch["y"], reduction="none")

        optimizer = zotune.MeZO(model, lr=0.1, eps=1e-2, queries=2, parallel=parallel)
        means = []
        for step in range(3):
            for batch in rows[4 * step : 4 * step + 4]:
                if closures:
                    optimizer.estimate(lambda batch=batch: loss(model, batch).mean(), weight=4.0)
                else:
                    optimizer.estimate(loss, batch)
            means.append(optimizer.step())
        return {"sha256": zotune.weights_sha256(dict(model.named_parameters())), "means": means}

    def script(what: str) -> Act:
        def act(rank: int) -> None:
            import torch.distributed as dist

            dist.init_process_group("gloo")
            try:
                if what == "other batches":
                    trained(zotune.Parallel("data"), False, alter=rank)
                elif what == "out of step":
                    parallel = zotune.Parallel("data")
                    for _ in range(1 + rank):
                        parallel.deal(zotune.MeZO(nn.Linear(2, 2)).estimator.points(0, 0), {}, 1.0, False, 2)
                    parallel.gather(0, dict)
                elif what == "shared":
                    group = Group()
                    sent = bytes(range(256)) * 1000
                    assert group.share(sent if rank == 0 else b"") == sent and group.share(b"") == b""
                    assert group.exchange(b"x" * rank) == [b"x" * each for each in range(group.size)]
                    print(json.dumps({"message_bytes": group.message_bytes}))
                else:
                    mode, _, kind = what.partition(" ")
                    print(json.dumps(trained(zotune.Parallel(mode), kind == "closures")))
            except RunError as error:
                print(json.dumps({"error": str(error)}))
            finally:
                dist.destroy_process_group()

        return act

    found: dict[str, Any] = {"alone": {str(closures): trained(None, closures) for closures in (False, True)}}
    for what in ("data ", "data closures", "data+probes ", "signs ", "other batches", "out of step", "shared"):
        log = folder / f"{what.strip().replace(' ', '-')}.log"
        codes = crowd(2, script(what), log)
        found[what.strip()] = {
            "codes": codes,
            "found": [json.loads(text.splitlines()[-1]) if text else text for text in said(log, 2)],
        }
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    job = json.loads(Path(sys.argv[2]).read_text())
    folder = Path(job["folder"])
    folder.mkdir()
    if "shard" in Path(sys.argv[2]).read_text() + Path(job["config"]).read_text():
        import torch.distributed.fsdp  # noqa: F401 - here, so that no child imports it anew
    kinds = {"courses": courses, "kills": kills, "failures": failures, "signals": signals, "script": own_script}
    kinds["trainers"] = trainers
    kinds["alone_in_a_shard"] = alone_in_a_shard
    print(json.dumps(kinds[sys.argv[1]](job, folder)))
