"""What a run came to, in words: what `zotune train` and `zotune resume` end with."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

from zotune.cli.frame import Session
from zotune.watch import NUMBERS, SHARES, duration, size


def show_run(session: Session, found: dict[str, Any]) -> None:
    """Scores before and after, what it took, what can be done next. `found` is what `zotune.train.train` returns."""
    session.watch.header(dict(_lines(found)))


def beside(foreseen: float, measured: float) -> str:
    """How far a prediction was off."""
    return f"{foreseen / measured - 1:+.1%}"


def _lines(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for key, name in SHARES.items():
        if found.get(f"{key}_after") is not None:
            yield name, _change(found, key, 100, ".1f", " %")
    for key in NUMBERS:
        if found.get(f"{key}_after") is not None:
            yield key, _change(found, key, 1, ".4f", "")
    if found.get("loss_after") is not None:
        yield "loss", f"{found['loss_before']:.4f} before, {found['loss_after']:.4f} after"
    took = duration(found["seconds"])
    yield "steps", f"{found['steps']:,} in {took} of training, {found['forwards']:,} forwards"
    peak, foreseen = found.get("peak_memory_bytes"), found.get("foreseen_memory_bytes")
    if peak:
        told = f", {size(foreseen)} foreseen ({beside(foreseen, peak)})" if foreseen and found["seconds"] else ""
        yield "memory", f"{size(peak)} at most{told}"
    if found.get("message_bytes") is not None:
        yield "messages", f"{found['message_bytes']:,} bytes a step from each process"
    yield "journal", f"{size(found['journal_bytes'])}: with the base model it is the run"
    yield "weights", f"sha256 {found['weights_sha256']}"
    run = shlex.quote(str(found["run"]))
    yield "next", f"zotune report {run}"
    yield "", f"zotune export {run} --to FOLDER"


def _change(found: dict[str, Any], key: str, times: float, form: str, unit: str) -> str:
    before, after = (times * found[f"{key}_{when}"] for when in ("before", "after"))
    low, high = found.get("low_after"), found.get("high_after")
    interval = ""
    if low is not None and high is not None:
        interval = f" (95 % interval {times * low:{form}} to {times * high:{form}})"
    return f"{before:{form}}{unit} before, {after:{form}}{unit} after{interval}, {found['eval_examples']} examples"
