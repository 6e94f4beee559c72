"""Kills, signals, power cuts and full disks at random moments of a run, and inputs that are corrupt: what survives?

    python bench/faults.py [--cycles 200] [--seed 0] [--json]

A cycle takes a course (dtype, scope, method, schedule, ...), strikes it one to three times while it trains, resumes, or
is undone, branched or checked out, then lets it finish. It is counted as identical when journal and metrics (and with
them every recorded hash of the weights) are those of the undisturbed run, to the byte. A power cut is a kill after
which whatever was not synced is cut, zeroed or gone. A corrupted input must end in an error with a remedy, or, where
only an unfinished tail is damaged, in the same run as ever. From 200 cycles on the figures go to results/faults.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import machine, write

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

from tests import hostile, killing, tiny  # noqa: E402

from zotune.config import TrainConfig  # noqa: E402
from zotune.data.files import read_rows  # noqa: E402
from zotune.data.template import Template  # noqa: E402
from zotune.errors import UserError  # noqa: E402
from zotune.yaml12 import parse_mapping  # noqa: E402

BUSY: dict[str, Any] = {"eval_every": 3, "snapshot_every": 2, "batch_size": 6, "micro_batch_size": 3}
# gpt2 and bert have dropout in their configs; all shuffle their rows and accumulate two micro-batches.
COURSES: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"dtype": "bfloat16", "lr_schedule": "linear", "warmup_steps": 2},
    "float16": {"dtype": "float16", "queries": 2, "lr_schedule": "cosine"},
    "rademacher": {"method_args": {"law": "rademacher"}, "queries": 3, "weight_decay": 0.1},
    "lozo": {"method": "lozo", "method_args": {"rank": 2, "interval": 3}},
    "lozo bfloat16": {"method": "lozo", "method_args": {"interval": 2}, "dtype": "bfloat16", "queries": 2},
    "sparse": {"method": "sparse_mezo", "on_nonfinite": "skip"},
    "lora": {"scope": "lora", "lora_rank": 2},
    "lora bfloat16": {"scope": "lora", "lora_rank": 2, "dtype": "bfloat16", "warmup_steps": 3},
    "dropout, tied": {"family": "gpt2", "scope": "last:1"},
    "dropout, masked": {"family": "bert", "scope": "norms", "dtype": "float16"},
    "language model": {"label_words": None, "template": None, "eval": None},
}
STRIKES = ("kill", "point", "power cut", "SIGTERM", "SIGINT", "full disk")
ACTS = ("train", "train", "train", "train", "undo", "branch", "checkout")


class Bench:
    """A folder to work in, the undisturbed runs, and what was seen."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.draw = folder, random.Random(seed)
        self.seen: Counter[str] = Counter()
        self.codes: Counter[str] = Counter()
        self.failures: list[str] = []
        self.strikes: list[str] = []  # of this cycle
        self.whole: dict[str, Path] = {}
        self.seconds: dict[str, float] = {}
        tiny.save_rows(folder)
        for family in ("llama", "gpt2", "bert"):
            tiny.save_tiny(family, folder / family)

    def job(self, course: str) -> dict[str, Any]:
        """The config file of a course, written once, and its undisturbed run."""
        file = self.folder / f"{course}.yaml"
        if course not in self.whole:
            options = dict(COURSES[course])
            family = options.pop("family", "llama")
            template = "{{ text }} it was {{ mask }}" if family == "bert" else "{{ text }} it was"
            values = {
                "model": str(self.folder / family), "train": self.folder / "train.jsonl",
                "eval": self.folder / "eval.jsonl", "template": template, "label_words": ["terrible", "great"],
                "lr": 1e-2, "eps": 1e-2, "steps": 7, "seed": 4, "device": "cpu", "threads": 1, "output_dir": "run",
            }  # fmt: skip
            file.write_text(TrainConfig(**{**values, **BUSY, **options}).to_yaml())
            (self.folder / course).mkdir()
            self.whole[course] = killing.undisturbed({"config": str(file)}, self.folder / course, self.log)
            begun = time.perf_counter()
            killing.finish({"config": str(file)}, self.folder / course / "timed", self.log)
            self.seconds[course] = time.perf_counter() - begun
        return {"config": str(file)}

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    # --- strikes -----------------------------------------------------------------------------------------------------

    def strike(self, command: list[str], run: Path, seconds: float) -> int:
        """Run a command in a child that meets one fault; its exit code."""
        kind, synced = self.draw.choice(STRIKES), self.folder / "synced.txt"
        patches: list[killing.Patch] = [heeding_ctrl_c, noting_syncs(synced)]
        if kind == "point":
            patches.append(self.draw.choice(list(killing.POINTS.values())))
        if kind == "full disk":
            patches.append(disk_of(self.draw.choice((0, 2 ** self.draw.randint(6, 15)))))
        pid = killing.start(command, self.log, lambda: [patch() for patch in patches] and None)
        number = {"SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}.get(kind, signal.SIGKILL)
        if kind not in ("point", "full disk"):
            time.sleep(self.draw.uniform(0, seconds))
            os.kill(pid, number)
        code = killing.wait(pid)
        if kind == "power cut" and code == -signal.SIGKILL:
            self.cut_power(run, synced)
        self.strikes.append(f"{command[0]}: {kind}, {code}")
        self.seen[kind] += 1
        self.codes[f"{kind}: {code}"] += 1
        if kind == "full disk" and code not in (0, 2, 3, 4):
            self.failures.append(f"{command[0]} on a full disk ended with {code}")
        if kind == "point" and code not in (0, -signal.SIGKILL):
            self.failures.append(f"{command[0]} at a point ended with {code}: {self.said()}")
        return code

    def said(self) -> str:
        """What the commands of this cycle have printed at last."""
        return self.log.read_text(errors="replace")[-2000:] if self.log.exists() else "nothing"

    def cut_power(self, run: Path, synced: Path) -> None:
        """What was not synced is kept in part, zeroed or, where a file was never synced, gone."""
        sizes: dict[int, int] = {}
        for line in synced.read_text().splitlines():
            inode, size = map(int, line.split())
            sizes[inode] = size
        for path in sorted(run.rglob("*")) if run.is_dir() else ():
            if not path.is_file():
                continue
            found = path.stat()
            if found.st_ino not in sizes and self.draw.random() < 0.3 and path.name != "config.yaml":
                path.unlink()
                continue
            safe = min(sizes.get(found.st_ino, 0), found.st_size)
            kept = self.draw.randint(safe, found.st_size)
            if path.name in ("config.yaml", "lock") or kept == found.st_size:
                continue
            data = path.read_bytes()
            zeros = bytes(found.st_size - kept) if self.draw.random() < 0.5 else b""
            path.write_bytes(data[:kept] + zeros)
        note_all(run, synced)

    # --- cycles ------------------------------------------------------------------------------------------------------

    def survives(self, number: int) -> bool:
        """One cycle; whether it ended as if nothing had happened. A command that fails afterwards is told, too."""
        self.strikes.clear()
        try:
            return self.cycle(number)
        except SystemExit as ended:
            self.failures.append(f"cycle {number}: {'; '.join(self.strikes)}: {ended.code}")
            return False

    def cycle(self, number: int) -> bool:
        """One cycle; whether it ended as if nothing had happened."""
        course = list(COURSES)[number % len(COURSES)]
        job, act = self.job(course), self.draw.choice(ACTS)
        whole, seconds = self.whole[course], self.seconds[course]
        run = self.folder / f"run-{number}"
        synced = self.folder / "synced.txt"
        synced.write_text("")
        before = len(self.failures)
        if act == "train":
            for _ in range(self.draw.randint(1, 3)):
                left = 1 - 0.6 * max(0, killing.steps_in(run)) / 7
                self.strike(killing.next_command(job, run), run, left * seconds)
            killing.finish(job, run, self.log)
        elif act == "undo":
            shutil.copytree(whole, run)
            note_all(run, synced)
            for _ in range(2):
                self.strike(["undo", str(run), str(self.draw.randint(1, 3))], run, 0.02)
            killing.finish(job, run, self.log)
        elif act == "branch":
            command = ["branch", str(whole), "--step", str(self.draw.randint(0, 7)), "--to", str(run)]
            self.strike(command, run, 0.02)
            if run.exists():  # whole, or not there
                killing.finish(job, run, self.log)
            else:
                self.retry(command)
                killing.finish(job, run, self.log)
            self.seen[act] += 1
            same = [killing.steps_in(run) == 7, lines(run) == lines(whole)]
            return self.tidy(run, number, course, act, all(same) and len(self.failures) == before)
        else:
            command = ["checkout", str(whole), "--step", "7", "--to", str(run), "--force"]
            wanted = self.folder / course / "checked out"
            if not wanted.exists():
                self.retry(["checkout", str(whole), "--step", "7", "--to", str(wanted)])
            for _ in range(2):
                self.strike(command, run, seconds)
                if run.exists() and content(run) != content(wanted):
                    self.failures.append(f"cycle {number}: {run} is there, but not whole")
            self.retry(command)
            self.seen[act] += 1
            beside = [path.name for path in self.folder.iterdir() if path.name.startswith(f".{run.name}.")]
            same = content(run) == content(wanted) and not beside
            return self.tidy(run, number, course, act, same and len(self.failures) == before)
        self.seen[act] += 1
        same = killing.state(run) == killing.state(whole) and not (run / "lock").exists()
        return self.tidy(run, number, course, act, same and len(self.failures) == before)

    def retry(self, command: list[str]) -> None:
        """The command undisturbed; it must work."""
        code = killing.wait(killing.start(command, self.log))
        if code != 0:
            raise SystemExit(f"{command} ended with {code}: {self.said()}")

    def tidy(self, run: Path, number: int, course: str, act: str, same: bool) -> bool:
        if not same:
            self.failures.append(f"cycle {number} ({course}, {act}) differs: {'; '.join(self.strikes)}")
        elif run.is_dir():
            shutil.rmtree(run)
        self.log.unlink(missing_ok=True)
        return same

    # --- corrupted inputs --------------------------------------------------------------------------------------------

    def corrupted(self) -> tuple[int, int]:
        """How many inputs were tried, and how many ended in a clear error (or a whole run, behind a torn tail)."""
        tries: list[tuple[str, Callable[[], bool]]] = []
        for text in hostile.YAMLS:
            tries.append((f"yaml {text[:20]!r}", lambda t=text: refused(lambda: parse_mapping(t, "c.yaml"))))
        for name, source in hostile.TEMPLATES.items():
            row = hostile.HOSTILE_ROW
            tries.append((f"template {name}", lambda s=source, r=row: refused(lambda: Template(s).render(r))))
        for name, data in hostile.ROWS:
            path = self.folder / "hostile" / name
            path.parent.mkdir(exist_ok=True)
            tries.append(
                (f"rows {data[:20]!r}", lambda p=path, d=data: p.write_bytes(d) and refused(lambda: read_rows(p)))
            )
        whole = self.whole["float32"]
        for number in range(60):
            name = ("journal.zoj", "config.yaml", "metrics.jsonl")[min(2, number // 25)]
            tries.append((f"{name} damaged, {number}", lambda n=number, f=name: self.damaged(whole, f, n)))
        for name, damage in FOLDERS.items():
            tries.append((name, lambda n=name, d=damage: self.command_on(whole, n, d)))
        good = 0
        for name, attempt in tries:
            ok = attempt()
            good += ok
            if not ok:
                self.failures.append(f"corrupted input: {name}")
        return len(tries), good

    def rows_refused(self, name: str, data: bytes) -> bool:
        path = self.folder / name
        path.write_bytes(data)
        return refused(lambda: read_rows(path))

    def damaged(self, whole: Path, name: str, number: int) -> bool:
        """A file of a run with a few bytes flipped, cut or added: resume refuses clearly, or ends as ever."""
        draw = random.Random(number)

        def damage(run: Path) -> None:
            data = bytearray((run / name).read_bytes())
            at = draw.randrange(len(data))
            how = draw.choice(("flip", "cut", "add", "zero"))
            if how == "cut":
                data = data[:at]
            elif how == "add":
                data[at:at] = draw.randbytes(draw.randint(1, 40))
            else:
                data[at : at + 4] = bytes(4) if how == "zero" else bytes(b ^ 0xFF for b in data[at : at + 4])
            (run / name).write_bytes(data)

        return self.command_on(whole, f"{name}-{number}", damage)

    def command_on(self, whole: Path, name: str, damage: Callable[[Path], Any]) -> bool:
        run, said = self.folder / f"damaged-{name}".replace(" ", "-"), self.folder / "said.txt"
        shutil.copytree(whole, run)
        damage(run)
        said.unlink(missing_ok=True)
        code = killing.wait(killing.start(["resume", str(run)], said))
        if code == 0:
            return lines(run) == lines(whole)
        text = said.read_text()
        return 2 <= code <= 7 and "Remedy: " in text and "Traceback" not in text


def _pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


FOLDERS: dict[str, Callable[[Path], Any]] = {
    "no journal's magic": lambda run: (run / "journal.zoj").write_bytes(b"PK\x03\x04" * 100),
    "a journal of zeros": lambda run: (run / "journal.zoj").write_bytes(bytes(5000)),
    "a header of four gigabytes": lambda run: (run / "journal.zoj").write_bytes(b"ZOJ1\n\xff\xff\xff\xff{}"),
    "an empty config": lambda run: (run / "config.yaml").write_bytes(b""),
    "a config that is a pipe": lambda run: _pipe(run / "config.yaml"),
    "a journal that is a pipe": lambda run: _pipe(run / "journal.zoj"),
    "a journal that is a folder": lambda run: ((run / "journal.zoj").unlink(), (run / "journal.zoj").mkdir()),
    "metrics that are a link": lambda run: ((run / "metrics.jsonl").unlink(), (run / "metrics.jsonl").symlink_to(run)),
    "a config without its model": lambda run: (run / "config.yaml").write_text("model: /nowhere\ntrain: t.jsonl\n"),
}


def note_all(run: Path, synced: Path) -> None:
    """What is there now is on the disk."""
    files = [path.stat() for path in run.rglob("*") if path.is_file()]
    synced.write_text("".join(f"{found.st_ino} {found.st_size}\n" for found in files))


def noting_syncs(file: Path) -> killing.Patch:
    """Write down the size of each file when it is synced, by inode: a rename keeps that."""

    def patch() -> None:
        fsync = os.fsync
        log = os.open(file, os.O_WRONLY | os.O_APPEND)

        def noting(descriptor: int) -> None:
            fsync(descriptor)
            found = os.fstat(descriptor)
            limits = resource.getrlimit(resource.RLIMIT_FSIZE)  # of the disk that is full; the notes are not on it
            resource.setrlimit(resource.RLIMIT_FSIZE, (limits[1], limits[1]))
            os.write(log, f"{found.st_ino} {found.st_size}\n".encode())
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

        os.fsync = noting

    return patch


def heeding_ctrl_c() -> None:
    """A benchmark in the background inherits that SIGINT is ignored; a user's command does not."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def disk_of(size: int) -> killing.Patch:
    """No file may grow beyond `size` bytes, as on a disk that is full."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def refused(call: Callable[[], Any]) -> bool:
    """Whether it ends in the documented error, within five seconds."""
    begun = time.perf_counter()
    try:
        call()
    except UserError as error:
        return "Remedy: " in str(error) and time.perf_counter() - begun < 5
    except Exception:
        return False
    return False


def lines(run: Path) -> list[Any]:
    """Steps and metrics of a run, whatever its header says."""
    from zotune.journal import StepRecord, read

    steps = [record for record in read(run / "journal.zoj")[1] if isinstance(record, StepRecord)]
    return [repr(steps), (run / "metrics.jsonl").read_bytes()]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".safetensors"}


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    text = ["# Faults", ""]
    text += [f"{key}: {value}  " for key, value in result["machine"].items() if value is not None]
    text += [
        "",
        f"`python bench/faults.py --cycles {result['cycles']} --seed {result['seed']}`, {result['seconds']} s",
        "",
    ]
    text += ["| | tried | survived |", "|---|---|---|"]
    text += [f"| cycles that end bit-identical | {result['cycles']} | {result['identical']} |"]
    text += [f"| corrupted inputs with a clear error | {result['corrupted_inputs']} | {result['clear_errors']} |"]
    text += ["", f"Courses: {', '.join(COURSES)}.", "", "Strikes and what was struck:", ""]
    text += ["| | times |", "|---|---|", *(f"| {name} | {count} |" for name, count in sorted(result["seen"].items()))]
    text += ["", "Exit codes (0: the command had ended before; -15 and 70: the signal came before it had begun):", ""]
    text += ["| strike: code | times |", "|---|---|"]
    text += [f"| {name} | {count} |" for name, count in sorted(result["codes"].items())]
    text += ["", *(f"- FAILED: {failure}" for failure in result["failures"])]
    return "\n".join(text).rstrip() + "\n"


def main() -> None:
    """Strike, count, print, write results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--cycles", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options.seed)
        identical = sum(bench.survives(number) for number in range(options.cycles))
        bench.job("float32")
        tried, clear = bench.corrupted()
    result = {
        "cycles": options.cycles, "identical": identical, "corrupted_inputs": tried, "clear_errors": clear,
        "seed": options.seed, "seconds": round(time.perf_counter() - begun), "seen": bench.seen, "codes": bench.codes,
        "failures": bench.failures, "machine": machine(),
    }  # fmt: skip
    if options.cycles >= 200:
        write("faults", result, table(result))
    print(json.dumps(result) if options.json else table(result))


if __name__ == "__main__":
    main()
