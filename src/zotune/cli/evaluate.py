"""`zotune eval`: score a run, or a model before any training, on held-out rows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from zotune.cli.frame import Json, Session, TrustReward, execute
from zotune.cli.options import values_of, with_options
from zotune.config import NEVER_FROM_FILE, TrainConfig
from zotune.data.hub import EVAL, placed
from zotune.errors import ConfigError
from zotune.option import flag
from zotune.run import RunPaths

NAMES = (
    "model", "eval", "data_format", "text_column", "label_column", "completion_column", "template", "label_words",
    "labels", "task", "data_dir", "data_seed", "shots", "train_rows", "eval_rows", "eval_split", "calibrated",
    "objective", "reward", "reward_weights", "reward_timeout", "metric", "max_new_tokens", "temperature", "stop",
    "eval_batch_size", "max_length", "dtype", "device", "threads", "trust_remote_code",
    "allow_task_code",
)  # fmt: skip


@with_options(NAMES)
def command(
    run: Annotated[
        Path | None,
        typer.Argument(metavar="[RUN]", help="Folder of a run.", show_default=False),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option("--tasks", metavar="A,B,...", help="Built-in tasks, or lm-eval's; a table.", show_default=False),
    ] = None,
    trust_reward: TrustReward = False,
    as_json: Json = False,
    **given: Any,
) -> None:
    """Score a run on held-out rows, or on tasks. Without a run: the model of --model as it is (zero-shot)."""

    def body(session: Session) -> dict[str, Any]:
        values = values_of(given)
        if tasks is not None:
            return _on_tasks(session, run, [name.strip() for name in tasks.split(",") if name.strip()], values)
        config = config_of(run, values)
        from zotune.revisit import evaluate_run

        trusted = trust_reward or bool({"reward", "metric"} & set(values))  # the user's own words, not the run's
        return evaluate_run(config, run, session.watch, trust_reward=trusted)

    execute(body, as_json, _show if tasks is not None else None)


def _on_tasks(session: Session, run: Path | None, names: list[str], values: dict[str, Any]) -> dict[str, Any]:
    from zotune.resolve import resolve

    for name in ("task", "eval", "template", "label_words", "labels", "data_format", "completion_column"):
        if name in values:
            raise ConfigError(f"tasks and {name} were given: a task has its own. Remedy: leave {flag(name)} out.")
    of_model = ("dtype", "device", "threads", "max_length", "eval_batch_size", "max_new_tokens", "temperature")
    own = {name: value for name, value in values.items() if name in ("model", *NEVER_FROM_FILE, *of_model)}
    if run is None:
        if "model" not in values:
            raise ConfigError("model is missing. Remedy: name a run folder, or give --model.")
        config = resolve({"train": ".", "output_dir": ".", "steps": 0, **own})
    else:
        if "model" in values:
            raise ConfigError("a run and --model were given. Remedy: give one of them.")
        config = resolve({"output_dir": run, **own}, RunPaths(run).check().config)
    from zotune.evaluate_tasks import evaluate_tasks

    given = {name: value for name, value in values.items() if name not in own}
    return evaluate_tasks(config.absolute(), run, names, given, session.watch)


def _show(session: Session, found: dict[str, Any]) -> None:
    from zotune.comparison.table import aligned, number, score

    cells: list[tuple[str, ...]] = [("task", "score (95 %)", "loss", "rows")]
    for row in found["tasks"]:
        if "error" in row:
            cells.append((row["task"], " ".join(f"cannot run: {row['error']}".split())))
        else:
            cells.append((row["task"], score(row), number(row.get("loss"), ".3f"), number(row["examples"], ",")))
    for line in aligned(cells):
        session.watch.say(line)


def config_of(run: Path | None, values: dict[str, Any]) -> TrainConfig:
    """The run's own config with the given options; for a bare model one that only its evaluation uses."""
    from zotune.resolve import resolve

    if run is None:
        for name in ("model", "eval"):
            if name not in values and not (name == "eval" and "task" in values):
                raise ConfigError(f"{name} is missing. Remedy: name a run folder, or give --model and --eval.")
        rows = {} if "task" in values else {"train": placed(Path(values["eval"]), EVAL)}
        return resolve({**rows, "output_dir": ".", "steps": 0, **values}).absolute()
    if "model" in values:
        raise ConfigError("a run and --model were given. Remedy: give one of them.")
    config = resolve(values, RunPaths(run).check().config)
    if config.eval is None and config.task is None:
        raise ConfigError(f"{run} has no evaluation rows. Remedy: give --eval FILE.")
    return config.absolute()
