"""One step in one process and shared by two; bytes between them; how soon a killed process is back; and a simulation.

    python bench/scale.py [--json] [--quick] [--model opt-30m-shaped] [--repeats 7]

Measured, each process on one thread, in turns within one launch of torchrun: `alone` (process 0 steps, the other
waits), `both alone` (each takes that same step by itself, at once: what the machine allows two processes), `shared`
(both take the step together, half of its micro-batches each). Efficiency at two processes is alone / (2 shared); the
ceiling that the machine sets is alone / both alone. Bytes are those of the messages, and those that the loopback device
counted.
`rejoin` is a real run under torchrun of which one process is killed: seconds until the journal grows again. `pool` is a
real one of two workers on Ray (the extra `ray`; without it the line is left out): seconds until a worker is replaced.

Computed: up to 1,024 processes. A process's time is a sum of measured times of forwards, drawn at random, so the
slowest one sets the pace; updates cost what they were measured to cost; an exchange is the measured one, as a ring of
so many hops (and once more with hops of an assumed 1 ms, as over a slow network).
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from common import MODELS, machine, objective, seconds, sentences_config, tokens, write
from torch import nn

import zotune
from zotune.distributed.group import Group

UNITS, ROWS = 8, 4  # micro-batches of a step, sentences of each
METHODS: dict[str, Callable[..., zotune.ZerothOrder]] = {
    "mezo rademacher": lambda model, **more: zotune.MeZO(model, lr=1e-9, law="rademacher", lanes="on", **more),
    "lozo": lambda model, **more: zotune.LoZO(model, lr=1e-9, interval=50, fold_every=50, lanes="on", **more),
}
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
SLOW_HOP = 1e-3  # seconds; assumed
CELLS = 1024  # micro-batches, or probes, of a step in the simulation
STEPS = 20  # simulated for each size


# --- in a process of torchrun


def worker(name: str, repeats: int) -> None:
    """Both processes of the launch; process 0 prints what was measured."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    group, found = Group(), {}
    model = MODELS[name]()
    batch = tokens(ROWS)
    for method, build in METHODS.items():
        found[method] = steps(model, build, batch, group, repeats)
    if group.rank == 0:
        print(json.dumps(found), flush=True)
    dist.destroy_process_group()


def steps(model: nn.Module, build: Callable[..., Any], batch: Any, group: Group, repeats: int) -> dict[str, Any]:
    """Seconds of the three kinds of turns, and of the parts of a step."""
    # A copy: process 0 takes more steps alone, and processes whose weights part are refused.
    single, shared = build(copy.deepcopy(model)), build(model, parallel=zotune.Parallel("data", group))
    turns: dict[str, list[float]] = {"alone": [], "both alone": [], "shared": []}
    forwards: list[float] = []
    updates: list[float] = []

    def take(optimizer: zotune.ZerothOrder) -> float:
        begun = time.perf_counter()
        for _ in range(UNITS):
            spent = seconds(lambda: optimizer.estimate(objective, batch))
            if optimizer is single:
                forwards.append(spent)
        spent = seconds(optimizer.step)
        if optimizer is single:
            updates.append(spent)
        return time.perf_counter() - begun

    for turn in range(repeats + 1):
        for kind, seen in turns.items():
            group.exchange(b"")
            spent = take(shared if kind == "shared" else single) if kind != "alone" or group.rank == 0 else 0.0
            group.exchange(b"")
            if turn == 0:  # warm caches and compiled kernels
                forwards.clear()
                updates.clear()
            elif group.rank == 0:
                seen.append(spent)
        if turn == 0:
            sent = group.exchanges, group.sent_bytes
    if group.rank:
        return {}
    several = build(copy.deepcopy(model), queries=9)
    many = min(probes_update(several, batch) for _ in range(3))
    fold = median(seconds(single.fold) for _ in range(3)) if single.fold_every == 1 else folded(single, batch)
    return {
        **{f"{kind}_seconds": median(seen) for kind, seen in turns.items()},
        "efficiency": spread(a / (2 * s) for a, s in zip(turns["alone"], turns["shared"], strict=True)),
        "ceiling": spread(a / b for a, b in zip(turns["alone"], turns["both alone"], strict=True)),
        "forward_seconds": forwards,
        "update_seconds": median(updates),
        "update_seconds_of_a_further_probe": max(0.0, (many - median(updates)) / 8),
        "fold_seconds": fold,
        "message_bytes": group.message_bytes,
        "exchanges_and_bytes_a_turn": [(now - then) / repeats for now, then in zip(
            (group.exchanges, group.sent_bytes), sent, strict=True)],
    }  # fmt: skip


def spread(ratios: Iterable[float]) -> list[float]:
    """Median, least and largest."""
    found = sorted(ratios)
    return [median(found), found[0], found[-1]]


def probes_update(optimizer: zotune.ZerothOrder, batch: Any) -> float:
    """Seconds of the update alone, of a step with many probes."""
    optimizer.estimate(objective, batch)
    return seconds(optimizer.step)


def folded(optimizer: zotune.ZerothOrder, batch: Any) -> float:
    """Seconds of writing the waiting updates into the weights; once in `fold_every` steps."""
    optimizer.step(objective, batch)
    return seconds(optimizer.fold)


def exchanges(size: int, count: int = 300) -> None:
    """Exchanges of a step's usual message between `size` processes, and what the loopback device counts meanwhile."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    group = Group()
    for _ in range(20):
        group.exchange(b"x" * size, usual=True)
    before, spent = loopback(), []
    for _ in range(count):
        spent.append(seconds(lambda: group.exchange(b"x" * size, usual=True)))
    after = loopback()
    if group.rank == 0:
        wire = None if before is None or after is None else (after - before) / count
        print(
            json.dumps({"seconds": median(spent), "message_bytes": group.message_bytes, "wire_bytes": wire}), flush=True
        )
    dist.destroy_process_group()


def loopback() -> int | None:
    """Bytes that the loopback device has sent so far; None where the system does not tell."""
    counters = Path("/proc/net/dev")
    lines = counters.read_text().splitlines() if counters.exists() else []
    found = [line.split(":", 1)[1].split()[8] for line in lines if line.strip().startswith("lo:")]
    return int(found[0]) if found else None


# --- the launcher


def launch(size: int, *arguments: str) -> Any:
    """What process 0 of a torchrun of this script prints last."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size), __file__]
    done = subprocess.run([*command, *arguments], check=True, stdout=subprocess.PIPE, text=True, env=environment())
    return json.loads(done.stdout.splitlines()[-1])


def environment() -> dict[str, str]:
    """One thread for each process."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}


def recorded(run: Path) -> int:
    """Steps in a run's journal, which another process may be writing."""
    from zotune.journal import StepRecord, read

    journal = run / "journal.zoj"
    return sum(isinstance(r, StepRecord) for r in read(journal)[1]) if journal.exists() else 0


def rejoin(before: int, after: int) -> dict[str, Any]:
    """The demo's model and rows, all weights: process 1 is killed once `before` steps are recorded."""
    from zotune.demo.assets import demo_data, demo_model

    with tempfile.TemporaryDirectory() as folder:
        rows, run = Path(folder) / "train.jsonl", Path(folder) / "run"
        rows.write_text("".join(demo_data().train.read_text().splitlines(keepends=True)[:128]))
        options = {
            "model": demo_model(), "train": rows, "template": "{{ text }} It was", "label-words": "terrible,great",
            "law": "rademacher", "batch-size": 8, "micro-batch-size": 4, "steps": before + after, "threads": 1,
            "device": "cpu", "output-dir": run,
        }  # fmt: skip
        flags = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        command += ["--max-restarts", "1", "-m", "zotune", "train", *flags]

        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment()) as process:
            while recorded(run) < before:
                time.sleep(0.005)
            first = json.loads((run / "lock").read_text())["pid"]
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            other = next(
                int(p) for p in children if int(p) != first and b"zotune" in Path(f"/proc/{p}/cmdline").read_bytes()
            )
            os.kill(other, signal.SIGKILL)
            begun, steps_then = time.perf_counter(), recorded(run)
            while recorded(run) <= steps_then + 1:  # one that was under way may still have arrived
                if process.poll() is not None:
                    raise SystemExit(
                        f"the run ended: {process.stderr.read().decode()[-2000:] if process.stderr else ''}"
                    )
                time.sleep(0.005)
            spent = time.perf_counter() - begun
            process.send_signal(signal.SIGTERM)
            process.communicate()
    return {"seconds": spent, "replayed_steps": steps_then}


def pool_rejoin(before: int, steps: int) -> dict[str, Any] | None:
    """Two workers on Ray, of which one is killed: seconds until another has joined, while the first goes on.

    None where Ray is not installed.
    """
    if find_spec("ray") is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        options = {"batch_size": 8, "micro_batch_size": 4, "steps": steps, "threads": 1}
        config = sentences_config(Path(folder), 128, 8, method_args={"law": "rademacher"}, **options)
        config = dataclasses.replace(config, eval=None, output_dir=run)
        (Path(folder) / "run.yaml").write_text(config.to_yaml(), encoding="utf-8")
        command = [sys.executable, "-m", "zotune", "pool", "--config", str(Path(folder) / "run.yaml"), "--workers", "2"]

        found: dict[str, Any] = {}
        with subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
        ) as process:
            assert process.stderr is not None
            said: list[str] = []
            for line in process.stderr:  # a line for who joins, and for each step
                said.append(line)
                joined = re.search(r"worker (\d+) joined \(process (\d+) on", line)
                if joined and "killed" not in found:
                    found["pid"] = int(joined[2])
                elif joined:
                    found["seconds"] = time.perf_counter() - found["killed"]
                    found["steps_meanwhile"] = recorded(run) - found["replayed_steps"]
                if "killed" not in found and "pid" in found and recorded(run) >= before:
                    found["replayed_steps"] = recorded(run)
                    os.kill(found["pid"], signal.SIGKILL)
                    found["killed"] = time.perf_counter()
            if process.wait() or "seconds" not in found:
                raise SystemExit(f"the pool ended with {process.returncode}:\n{''.join(said)[-2000:]}")
        caught_up = re.search(r"catching up took (\d+) bytes", "".join(said))
        assert caught_up is not None
        kept = {key: found[key] for key in ("seconds", "replayed_steps", "steps_meanwhile")}
        return {**kept, "caught_up_bytes": int(caught_up[1])}


# --- the simulation


def simulate(found: dict[str, Any], hop: float, seed: int = 0) -> list[dict[str, Any]]:
    """Efficiency of each number of processes for three kinds of steps of CELLS forwards. Computed, not measured."""
    rows, draw = [], random.Random(seed)
    dense, low = found["mezo rademacher"], found["lozo"]
    fold = low["fold_seconds"] / 50
    kinds = {
        "data": (dense, dense["update_seconds"]),
        "probes, dense": (dense, dense["update_seconds"] + (CELLS - 1) * dense["update_seconds_of_a_further_probe"]),
        "probes, low rank": (
            low,
            low["update_seconds"] + fold + (CELLS - 1) * low["update_seconds_of_a_further_probe"],
        ),
    }
    for size in SIZES:
        row: dict[str, Any] = {"processes": size, "exchange_seconds": hop * (size - 1)}
        for kind, (part, update) in kinds.items():
            times = part["forward_seconds"]
            one = CELLS * sum(times) / len(times) + update
            slowest = [max(sum(draw.choices(times, k=CELLS // size)) for _ in range(size)) for _ in range(STEPS)]
            row[kind] = one / (size * (sum(slowest) / STEPS + row["exchange_seconds"] + update))
        rows.append(row)
    return rows


def ranged(found: list[float]) -> str:
    """The median, and the range over the turns."""
    return "{:.2f} ({:.2f} to {:.2f})".format(*found)


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = ["# One step shared by several processes", ""]
    lines += [f"{key}: {value}  " for key, value in result["machine"].items() if value is not None]
    lines += [
        "",
        f"Measured on {result['model']}: {UNITS} micro-batches of {ROWS} sentences a step, one thread each. "
        "In brackets: range over the turns.",
        "",
    ]
    lines += ["| method | alone s | both alone s | shared by two s | efficiency | the machine's ceiling | update s |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for method, row in result["methods"].items():
        lines.append(
            f"| {method} | {row['alone_seconds']:.3f} | {row['both alone_seconds']:.3f} | "
            f"{row['shared_seconds']:.3f} | {ranged(row['efficiency'])} | {ranged(row['ceiling'])} | "
            f"{row['update_seconds']:.3f} |"
        )
    lines += ["", "| processes | exchange ms | message bytes | bytes on the loopback device |", "|---|---|---|---|"]
    for size, row in result["exchanges"].items():
        wire = "not known" if row["wire_bytes"] is None else f"{row['wire_bytes']:.0f}"
        lines.append(f"| {size} | {1000 * row['seconds']:.2f} | {row['message_bytes']} | {wire} |")
    if result["rejoin"]:
        back = result["rejoin"]
        lines += [
            "",
            f"Rejoin: {back['seconds']:.1f} s from the kill to the next step, {back['replayed_steps']} replayed.",
        ]
    if result["pool"]:
        back = result["pool"]
        lines += [
            "",
            f"A pool of two workers: {back['seconds']:.1f} s from the kill of one until another has joined. The first "
            f"took {back['steps_meanwhile']} steps meanwhile. The new one replayed these and the "
            f"{back['replayed_steps']} before them, {back['caught_up_bytes']} bytes in all.",
        ]
    lines += ["", f"Computed, for a step of {CELLS} forwards: efficiency with the measured hop of the exchange"]
    lines += [
        f"({1e6 * result['hop_seconds']:.0f} us), and in brackets with an assumed one of {1e3 * SLOW_HOP:.0f} ms.",
        "",
    ]
    kinds = [key for key in result["computed"][0] if key not in ("processes", "exchange_seconds")]
    lines += ["| processes | " + " | ".join(kinds) + " |", "|---" * (len(kinds) + 1) + "|"]
    for fast, slow in zip(result["computed"], result["computed_slow"], strict=True):
        cells = [f"{fast[kind]:.2f} ({slow[kind]:.2f})" for kind in kinds]
        lines.append(f"| {fast['processes']:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, compute, print, write results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--model", default="opt-30m-shaped")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--exchanges", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker or options.exchanges:
        worker(options.model, options.repeats) if options.worker else exchanges(options.exchanges)
        return
    MODELS[options.model]()  # cached before two processes look for it
    repeats = 2 if options.quick else options.repeats
    methods = launch(2, "--worker", "--model", options.model, "--repeats", str(repeats))
    message = methods["mezo rademacher"]["message_bytes"] - 5
    between = {size: launch(size, "--exchanges", str(message)) for size in ((2,) if options.quick else (2, 3, 4))}
    hop = median(row["seconds"] / (size - 1) for size, row in between.items())
    torch.set_num_threads(1)
    result = {
        "machine": machine(),
        "model": options.model,
        "methods": methods,
        "exchanges": between,
        "hop_seconds": hop,
        "rejoin": None if options.quick else rejoin(12, 12),
        "pool": None if options.quick else pool_rejoin(6, 60),
        "computed": simulate(methods, hop),
        "computed_slow": simulate(methods, SLOW_HOP),
    }
    if not options.quick:
        write("scale", result, table(result))
    print(json.dumps(result) if options.json else table(result))


if __name__ == "__main__":
    main()
