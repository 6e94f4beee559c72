"""`zotune tune`: eps and lr before a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from zotune.cli.frame import Json, Session, execute
from zotune.cli.options import METHOD_FLAGS, values_of, with_options
from zotune.config import OPTIONS

_BAR = 40  # characters of the longest bar


@with_options([name for name in (*OPTIONS, *METHOD_FLAGS) if name not in ("lr", "eps", "tuned")])
def command(
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="YAML file with the same names; flags win.", show_default=False),
    ] = None,
    write: Annotated[
        Path | None,
        typer.Option("--write", metavar="FILE", help="Config in which lr and eps are set.", show_default=False),
    ] = None,
    directions: Annotated[int, typer.Option("--directions", help="Random directions to measure along.", min=2)] = 8,
    trials: Annotated[
        int | None, typer.Option("--trials", help="Search by optuna: so many short runs.", min=1, show_default=False)
    ] = None,
    trial_steps: Annotated[
        int | None, typer.Option("--trial-steps", help="Steps of a trial. Default: --steps.", min=1)
    ] = None,
    study: Annotated[
        Path | None,
        typer.Option("--study", metavar="FILE", help="Keep the trials here, to go on later.", show_default=False),
    ] = None,
    as_json: Json = False,
    **given: Any,
) -> None:
    """Find eps and the learning rate. A few hundred forward passes, or --trials; no weight changes."""

    def body(session: Session) -> dict[str, Any]:
        from zotune.resolve import read_file, resolve

        values = values_of(given)
        if config is None or "output_dir" not in read_file(config)[0]:
            values.setdefault("output_dir", ".")  # nothing is written there
        resolved = resolve(values, config).absolute()
        from zotune.presets import tuned_for
        from zotune.tune import tune, write_values

        if write is not None:
            read_file(write)  # a file that cannot be read is said before the work
        if trials is None:
            found = tune(resolved, session.watch, directions)
        else:
            from zotune.search import search

            found = search(resolved, session.watch, trials, trial_steps, study)
        if write is not None:
            # The rate stands there twice, so that a run knows whether its own is still the one that was measured.
            tuned = tuned_for(found["lr"], resolved.method, resolved.scope)
            write_values(write, {"lr": found["lr"], "eps": found["eps"], "tuned": tuned})
        return found | ({} if write is None else {"written": str(write)})

    execute(body, as_json, _show if trials is None else _show_trials)


def _show_trials(session: Session, found: dict[str, Any]) -> None:
    session.watch.say("held-out loss by lr and eps, the best first; those without were given up")
    for row in sorted(found["trials"], key=lambda row: math.inf if row["loss"] is None else row["loss"]):
        loss = "-" if row["loss"] is None else f"{row['loss']:.4f}"
        session.watch.say(f"{row['lr']:8.1e}  {row['eps']:8.1e}  {loss}")
    written = f"; written to {found['written']}" if "written" in found else ""
    session.watch.say(f"lr: {found['lr']:.3g}\neps: {found['eps']:.3g}\n{len(found['trials'])} trials{written}")


def _show(session: Session, found: dict[str, Any]) -> None:
    say = session.watch.say
    say("signal-to-noise of the projected gradient, by eps (longer is better)")
    rows = found["eps_curve"]
    for line in _bars([row["eps"] for row in rows], [math.log1p(row["signal_to_noise"]) for row in rows]):
        say(line)
    say("change of the loss after one step, by lr (a minus falls, a plus rises)")
    rows = found["lr_curve"]
    for line in _bars([row["lr"] for row in rows], [row["change"] for row in rows]):
        say(line)
    known, times = found["preset"], found["times"]
    own = "" if times == 1 else f", times {times:g}: what the method takes where MeZO takes 1"
    say(
        f"lr: {found['lr']:g}   (an eighth of {found['largest_stable_lr']:g}, the largest that still helped{own})\n"
        f"eps: {found['eps']:g}\npresets for {known['mode']}: lr {known['lr']:g}, eps {known['eps']:g}\n"
        f"{found['forwards']} forwards" + (f"; written to {found['written']}" if "written" in found else "")
    )


def _bars(names: Sequence[float], values: Sequence[float]) -> list[str]:
    """A line for each value; bars beyond the fourth-largest fall are cut, so that one divergence hides nothing."""
    finite = [abs(value) for value in values if math.isfinite(value) and value < 0] or [
        abs(value) for value in values if math.isfinite(value)
    ]
    top = max(finite, default=1.0) or 1.0
    lines = []
    for name, value in zip(names, values, strict=True):
        length = _BAR if not math.isfinite(value) else min(_BAR, round(_BAR * abs(value) / top))
        sign = "-" if value < 0 else "+" if any(v < 0 for v in values) else "#"
        lines.append(f"{name:8.1e} |{sign * length}")
    return lines
