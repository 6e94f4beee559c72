"""`zotune report`: one or several runs as one HTML page that needs nothing else, from their run folders alone.

Everything on the page is read from metrics.jsonl, timing.jsonl, journal.zoj and config.yaml; nothing is computed by a
model. `report_style.py` says how it looks.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

from zotune.chart import COLOURS, Plot, bounds
from zotune.curves import columns, grouped, histogram, smooth
from zotune.disk import refusal
from zotune.durable import write_file
from zotune.report_data import RunData, Score, collect, score_of
from zotune.report_style import STYLE
from zotune.watch import duration, size


def write_report(runs: Sequence[str | Path], output: Path) -> dict[str, Any]:
    """Write the page of `runs` to `output`. Returns output, bytes and runs. Raises RunError."""
    data = _named([collect(run) for run in runs])
    text = page(data).encode()
    try:
        write_file(output, text)
    except OSError as error:
        raise refusal(str(output), error, "choose another --output") from error
    return {"output": str(output), "bytes": len(text), "runs": [run.name for run in data]}


def page(runs: Sequence[RunData]) -> str:
    """The whole HTML document."""
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    parts = [
        f'<h1>{escape(title)}</h1><p class="lead">{escape(_lead(runs))}</p>',
        _cards(runs),
        _figure("Loss", "In training the mean of both sides of each step (faint: each step, strong: smoothed); "
                "dots: held-out rows.", _loss_plot(runs), runs),
        *(_score_figure(name, runs) for name in _scores(runs)),
        _eval_table(runs),
        _figure("Projected gradient", "How often a step saw which slope along its random direction. A good run is "
                "centred on 0, without far outliers.", _gradient_plot(runs), runs),
        _figure("Signal over rounding", "How far the losses of a step lie apart, in spacings of the numbers that the "
                "weights are stored in. Below 10 the slope is mostly rounding: raise eps or the precision.",
                _signal_plot(runs), runs),
        _cost_table(runs),
        _config_table(runs),
        _replay(runs),
    ]  # fmt: skip
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>zotune report: {escape(title)}</title><style>{STYLE}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


# --- the parts of the page -------------------------------------------------------------------------------------------


def _lead(runs: Sequence[RunData]) -> str:
    """Which models and data the page is about."""
    models = dict.fromkeys(Path(str(run.config.get("model"))).name for run in runs)
    data = dict.fromkeys(Path(str(run.config.get("train"))).name for run in runs)
    count = sum(math.prod(each["shape"]) for each in runs[0].header.get("parameters", []))
    trained = f", {count:,} trained parameters" if len(runs) == 1 and count else ""
    return f"{', '.join(models)} on {', '.join(data)}{trained}, with forward passes only."


def _cards(runs: Sequence[RunData]) -> str:
    cards = []
    for index, run in enumerate(runs):
        first, last = (run.evals[0], run.evals[-1]) if run.evals else ({}, {})
        before, after = score_of(first), score_of(last)
        if after is not None:
            main = f"{'-' if before is None else before.said()} → <b>{after.said()}</b>"
            below = f"{after.name} on {last['examples']:,} held-out rows"
            below += "" if after.low is None else f", 95 % interval {after.interval()}"
        elif last:
            main = f"{first['loss']:.4f} → <b>{last['loss']:.4f}</b>"
            below = f"loss on {last['examples']:,} held-out rows"
        else:
            main, below = f"<b>{_tail(run):.4f}</b>", "loss at the end of training; there are no held-out rows"
        method = f"{run.config.get('method', 'mezo')}, scope {run.config.get('scope', 'full')}, "
        method += f"{len(run.steps):,} steps" + ("" if run.seconds is None else f", {duration(run.seconds)}")
        cards.append(
            f'<section class="card"><h2>{_swatch(index)}{escape(run.name)}</h2>'
            f'<p class="big">{main}</p><p>{below}</p><p class="quiet">{escape(method)}</p></section>'
        )
    return f'<div class="cards">{"".join(cards)}</div>'


def _loss_plot(runs: Sequence[RunData]) -> str:
    curves = [grouped([(row["step"], row["loss"]) for row in run.steps]) for run in runs]
    points = [[(row["step"], row["loss"]) for row in run.evals] for run in runs]
    values = [y for curve in (*curves, *points) for _, y in curve]
    scored = any(run.config.get(name) for run in runs for name in ("reward", "metric", "objective"))
    unit = "loss (minus the score)" if scored else "loss in nats"
    plot = Plot((0, _most_steps(runs)), bounds(values), "step", unit)
    for index, (run, curve) in enumerate(zip(runs, curves, strict=True)):
        plot.line(*columns(curve), index, f"{run.name} loss", faint=True)
    for index, (run, curve) in enumerate(zip(runs, curves, strict=True)):
        plot.line(*columns(smooth(curve)), index, f"{run.name} smoothed")
        for step, loss in points[index]:
            plot.point(step, loss, index, f"{run.name}, step {step}: held-out loss {loss:.4f}")
    return plot.svg("Loss by step")


def _scores(runs: Sequence[RunData]) -> list[str]:
    """What the runs are judged by."""
    return list(dict.fromkeys(score.name for run in runs for row in run.evals if (score := score_of(row))))


def _score_figure(name: str, runs: Sequence[RunData]) -> str:
    """A score of the runs that have it, by step."""
    found = [
        [(row["step"], score) for row in run.evals if (score := score_of(row)) and score.name == name] for run in runs
    ]
    ends = [end for rows in found for _, s in rows for end in (s.low, s.value, s.high) if end is not None]
    share = any(score.share for rows in found for _, score in rows)
    plot = Plot((0, _most_steps(runs)), bounds(ends, 0.1), "step", name, percent_y=share, height=240)
    for index, (run, rows) in enumerate(zip(runs, found, strict=True)):
        plot.line([step for step, _ in rows], [score.value for _, score in rows], index, f"{run.name} {name}")
        for step, score in rows:
            title = f"{run.name}, step {step}: {score.said()} ({score.interval()})"
            plot.point(step, score.value, index, title, score.low, score.high)
    words = f"{name[0].upper()}{name[1:]} on held-out rows"
    if all(score.low is None for rows in found for _, score in rows):
        caption, intervals = "One number of all rows, without an interval.", ""
    else:
        kind = "Wilson" if name == "accuracy" else "from the spread over the rows"
        caption, intervals = f"With the 95 % interval ({kind}) that the rows allow.", ", with 95 % intervals"
    return _figure(words, caption, plot.svg(f"{words} by step{intervals}"), runs)


def _gradient_plot(runs: Sequence[RunData]) -> str:
    drawn = [[row["projected_gradient"] for row in run.steps] for run in runs]
    finite = [value for values in drawn for value in values if math.isfinite(value)]
    if not finite:
        return ""
    count = min(40, max(8, round(math.sqrt(len(finite)) * 1.5)))
    reach = max(map(abs, finite)) or 1.0
    edges = [reach * (2 * i / count - 1) for i in range(count + 1)]
    heights = [histogram(values, edges) for values in drawn]
    top = max(max(each) for each in heights)
    plot = Plot((-reach, reach), (0, 1.05 * top), "projected gradient (loss per unit of z)", "steps", height=240)
    for index, each in enumerate(heights):
        plot.bars(edges, each, index)
    return plot.svg("Histogram of the projected gradient")


def _signal_plot(runs: Sequence[RunData]) -> str:
    curves = [grouped([(step, ratio) for step, ratio in run.signal if ratio > 0]) for run in runs]
    values = [y for curve in curves for _, y in curve]
    if not values:
        return ""
    low, high = min(*values, 5.0), max(*values, 50.0)
    plot = Plot((0, _most_steps(runs)), (low / 1.5, high * 1.5), "step", "spread / spacing", log_y=True, height=240)
    plot.level(10.0, "mostly rounding below")
    for index, (run, curve) in enumerate(zip(runs, curves, strict=True)):
        plot.line(*columns(curve), index, f"{run.name} signal", faint=True)
        plot.line(*columns(smooth(curve, math.log, math.exp)), index, f"{run.name} signal, smoothed")
    return plot.svg("Signal over rounding by step")


def _eval_table(runs: Sequence[RunData]) -> str:
    names = _scores(runs)

    def cells(score: Score | None) -> tuple[str, str]:
        if score is None:
            return "-", "-"
        return (score.said() if len(names) == 1 else f"{score.name} {score.said()}"), score.interval()

    rows = [
        (
            _swatch(index) + escape(run.name),
            f"{row['step']:,}",
            *(cells(score_of(row)) if names else ()),
            f"{row['loss']:.4f}",
            f"{row['examples']:,}",
        )
        for index, run in enumerate(runs)
        for row in run.evals
    ]
    if not rows:
        return '<h2>Evaluations</h2><p class="quiet">The runs have no held-out rows (--eval).</p>'
    scored = (names[0] if len(names) == 1 else "score", "95 % interval") if names else ()
    return "<h2>Evaluations</h2>" + _table(("run", "step", *scored, "loss", "rows"), rows, "evaluations")


def _cost_table(runs: Sequence[RunData]) -> str:
    rows = [
        (
            _swatch(index) + escape(run.name),
            f"{len(run.steps):,}",
            f"{run.evaluations:,}",
            "-" if run.seconds is None else duration(run.seconds),
            "-" if run.seconds is None else f"{run.seconds / len(run.steps):.3g} s",
            "-" if run.peak is None else size(run.peak),
            f"{run.journal_bytes:,} bytes",
        )
        for index, run in enumerate(runs)
    ]
    note = "Time is that of the training steps, without evaluations. Memory is the peak of the whole process."
    head = ("run", "steps", "evaluations of the loss", "time", "per step", "peak memory", "journal")
    return f'<h2>Time and memory</h2>{_table(head, rows, "cost")}<p class="quiet">{note}</p>'


def _config_table(runs: Sequence[RunData]) -> str:
    names = list(dict.fromkeys(name for run in runs for name in run.config))
    rows = []
    for name in names:
        values = [run.config.get(name) for run in runs]
        cells = ["-" if value is None else escape(str(value)) for value in values]
        differs = any(value != values[0] for value in values)
        rows.append((f"<mark>{escape(name)}</mark>" if differs else escape(name), *cells))
    head = ("option", *(escape(run.name) for run in runs))
    return (
        f"<h2>Config</h2><details open><summary>{len(names)} options</summary>{_table(head, rows, 'config')}</details>"
    )


def _replay(runs: Sequence[RunData]) -> str:
    blocks = []
    for index, run in enumerate(runs):
        place = escape(shlex.quote(str(run.config.get("output_dir", run.name))))
        lines = [f"zotune replay {place} --verify", f"zotune replay {place} --to DIR"]
        facts = [
            ("zotune, torch", f"{run.header.get('zotune', '?')}, {run.header.get('torch', '?')}"),
            ("base weights", run.header.get("base_sha256", "not recorded")),
            ("trained weights", run.sha256 or "not recorded: the run is not finished"),
        ]
        listed = "".join(f"<dt>{name}</dt><dd>{escape(str(value))}</dd>" for name, value in facts)
        if len(runs) > 1:
            blocks.append(f"<h3>{_swatch(index)}{escape(run.name)}</h3>")
        blocks.append(f"<pre>{chr(10).join(lines)}</pre><dl>{listed}</dl>")
    return f"<h2>Replay</h2><p>{_takes(runs)}</p>{''.join(blocks)}"


def _takes(runs: Sequence[RunData]) -> str:
    """What a replay of the runs takes: some methods' directions come out of the rows."""
    from zotune.methods import METHODS

    methods = dict.fromkeys(str(run.header.get("method")) for run in runs)
    reading = [name for name in methods if name in METHODS and not METHODS[name].replayable]
    words = "The journal and the base model are all it takes: no data and no forward pass."
    if reading:
        others = " Of the others" if len(reading) < len(methods) else ""
        words = (
            f"A replay of {escape(', '.join(reading))} takes the run's training rows too, in the place that its config "
            "names, and a forward pass for each step."
        ) + (f"{others} the journal and the base model are all it takes." if others else "")
    return f"{words} The result has the hash below, or the command says that it has not."


# --- small things ----------------------------------------------------------------------------------------------------


def _figure(title: str, caption: str, drawing: str, runs: Sequence[RunData]) -> str:
    if not drawing:
        return ""
    legend = ""
    if len(runs) > 1:
        names = "".join(f"<span>{_swatch(index)}{escape(run.name)}</span>" for index, run in enumerate(runs))
        legend = f'<p class="legend">{names}</p>'
    return f"<h2>{title}</h2>{legend}<figure>{drawing}<figcaption>{caption}</figcaption></figure>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], name: str) -> str:
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table id="{name}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _swatch(index: int) -> str:
    return f'<i class="swatch s{index % COLOURS}"></i>'


def _tail(run: RunData) -> float:
    return float(median(row["loss"] for row in run.steps[-20:]))


def _most_steps(runs: Sequence[RunData]) -> float:
    return float(max(max(run.steps[-1]["step"], *(row["step"] for row in run.evals), 1) for run in runs))


def _named(runs: list[RunData]) -> list[RunData]:
    """Runs whose folders have the same name get a number."""
    names = [run.name for run in runs]
    return [
        run if names.count(run.name) == 1 else RunData(**{**vars(run), "name": f"{run.name} ({number})"})
        for number, run in enumerate(runs, 1)
    ]
