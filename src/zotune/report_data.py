"""What the report shows of one run, read from its folder. No model is loaded, and nothing is locked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from zotune.errors import RunError
from zotune.journal import StepRecord
from zotune.logged import timing_of
from zotune.resolve import read_file
from zotune.run import RunPaths
from zotune.watch import NUMBERS, SHARES

_SPACING = {"float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10}  # of numbers just above 1


@final
@dataclass(frozen=True)
class RunData:
    """What the page shows of one run. `steps` and `evals` are rows of metrics.jsonl, in their order."""

    name: str
    config: dict[str, Any]
    header: dict[str, Any]
    steps: list[dict[str, Any]]
    evals: list[dict[str, Any]]
    signal: list[tuple[int, float]]  # (step, spread of its losses over the spacing of numbers of the weights' dtype)
    seconds: float | None
    peak: int | None  # bytes
    journal_bytes: int
    evaluations: int  # of the loss, in training
    sha256: str | None


@final
@dataclass(frozen=True)
class Score:
    """What one evaluation is judged by. low, high: its 95 % interval, where it has one. share: of 1."""

    name: str
    value: float
    low: float | None
    high: float | None
    share: bool

    def said(self) -> str:
        """The value, a share as per cent."""
        return f"{100 * self.value:.1f} %" if self.share else f"{self.value:.3f}"

    def interval(self) -> str:
        """The interval in words; - without one."""
        if self.low is None or self.high is None:
            return "-"
        if self.share:
            return f"{100 * self.low:.1f} to {100 * self.high:.1f} %"
        return f"{self.low:.3f} to {self.high:.3f}"


def score_of(row: dict[str, Any]) -> Score | None:
    """The score of an evaluation (a row of `RunData.evals`); None where it has but a loss."""
    for key, name in {**SHARES, **{name: name for name in NUMBERS}}.items():
        if row.get(key) is not None:
            low, high = (None if row.get(end) is None else float(row[end]) for end in ("low", "high"))
            return Score(name, float(row[key]), low, high, key in SHARES)
    return None


def collect(run: str | Path) -> RunData:
    """Read one run folder. Raises RunError for a folder without a run, or with a run that has no step."""
    paths = RunPaths(run).check()
    header, records, _ = paths.recorded()
    taken = [record for record in records if isinstance(record, StepRecord)]
    rows = paths.logged()
    steps = [row for row in rows if "loss" in row and "projected_gradient" in row]
    if not taken or not steps:
        raise RunError(f"{paths.folder} has no step to report. Remedy: `zotune resume {paths.folder}` first.")
    config = read_file(paths.config)[0]
    timing = timing_of(paths.timing)
    peaks = [row["peak_memory_bytes"] for row in timing if row.get("peak_memory_bytes")]
    hashes = [record for record in records if not isinstance(record, StepRecord)]
    return RunData(
        name=paths.folder.resolve().name,
        config=config,
        header=header,
        steps=steps,
        evals=[{"step": row["step"], **row["eval"]} for row in rows if row.get("eval")],
        signal=_signal(taken, header),
        # A resumed run has one line for each part; a part that was killed left none.
        seconds=math.fsum(row["seconds"] for row in timing) if _whole(timing, len(taken)) else None,
        peak=max(peaks, default=None),
        journal_bytes=paths.journal.stat().st_size,
        evaluations=sum(len(record.losses) for record in taken),
        sha256=hashes[-1].sha256 if hashes and hashes[-1].step == len(taken) else None,
    )


def _whole(timing: Sequence[dict[str, Any]], steps: int) -> bool:
    return bool(timing) and timing[-1].get("steps") == steps


def _signal(taken: Sequence[StepRecord], header: dict[str, Any]) -> list[tuple[int, float]]:
    dtypes = {parameter["dtype"] for parameter in header.get("parameters", [])}
    spacing = max((_SPACING.get(dtype, 2.0**-52) for dtype in dtypes), default=2.0**-23)
    found = []
    for record in taken:
        scale = spacing * max(map(abs, record.losses), default=0.0)
        spread = max(record.losses, default=0.0) - min(record.losses, default=0.0)
        if scale > 0 and math.isfinite(spread / scale):
            found.append((record.step + 1, spread / scale))
    return found
