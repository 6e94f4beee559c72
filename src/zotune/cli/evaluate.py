"""`zotune eval`: score a run, or a model before any training, on held-out rows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from zotune.cli.frame import Json, Session, TrustReward, execute
from zotune.cli.options import values_of, with_options
from zotune.config import TrainConfig
from zotune.errors import ConfigError
from zotune.run import RunPaths

NAMES = (
    "model", "eval", "data_format", "text_column", "label_column", "completion_column", "template", "label_words",
    "labels", "task", "data_dir", "data_seed", "shots", "train_rows", "eval_rows", "eval_split", "calibrated",
    "objective", "reward", "reward_weights", "reward_timeout", "metric", "max_new_tokens", "temperature", "stop",
    "eval_batch_size", "max_length", "dtype", "device", "threads", "trust_remote_code",
)  # fmt: skip


@with_options(NAMES)
def command(
    run: Annotated[
        Path | None,
        typer.Argument(metavar="[RUN]", help="Folder of a run.", show_default=False),
    ] = None,
    trust_reward: TrustReward = False,
    as_json: Json = False,
    **given: Any,
) -> None:
    """Score a run on held-out rows. Without a run: the model of --model as it is (zero-shot)."""

    def body(session: Session) -> dict[str, Any]:
        values = values_of(given)
        config = config_of(run, values)
        from zotune.revisit import evaluate_run

        trusted = trust_reward or bool({"reward", "metric"} & set(values))  # the user's own words, not the run's
        return evaluate_run(config, run, session.watch, trust_reward=trusted)

    execute(body, as_json)


def config_of(run: Path | None, values: dict[str, Any]) -> TrainConfig:
    """The run's own config with the given options; for a bare model one that only its evaluation uses."""
    from zotune.resolve import resolve

    if run is None:
        for name in ("model", "eval"):
            if name not in values and not (name == "eval" and "task" in values):
                raise ConfigError(f"{name} is missing. Remedy: name a run folder, or give --model and --eval.")
        rows = {} if "task" in values else {"train": values["eval"]}
        return resolve({**rows, "output_dir": ".", "steps": 0, **values}).absolute()
    if "model" in values:
        raise ConfigError("a run and --model were given. Remedy: give one of them.")
    config = resolve(values, RunPaths(run).check().config)
    if config.eval is None and config.task is None:
        raise ConfigError(f"{run} has no evaluation rows. Remedy: give --eval FILE.")
    return config.absolute()
