"""Trackers (tensorboard, trackio, wandb, mlflow, ...) beside the console, through accelerate: the option `track`.

What they get is what `metrics.jsonl` holds: they only look on, and a tracker that fails stops nothing but itself. What
they write of their own lies in the run folder, unless their own environment variables name another place.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, final

from zotune.config import TrainConfig
from zotune.errors import ConfigError, UserError
from zotune.machine import offline
from zotune.resolve import config_of
from zotune.run import RunPaths
from zotune.watch import Watch

# Trackers that connect to a service of their makers.
_SERVICES = ("clearml", "comet_ml", "swanlab", "wandb")
FOLDER = "track"  # in the run folder, for trackers that write files


@final
class Tracked:
    """A watch that also tells trackers. `trackers` are accelerate's: they have `log` and `finish`."""

    def __init__(self, inner: Watch, trackers: Mapping[str, Any]) -> None:
        self._inner, self._trackers = inner, dict(trackers)

    def say(self, text: str) -> None:
        """To the inner watch alone."""
        self._inner.say(text)

    def header(self, info: Mapping[str, str]) -> None:
        """To the inner watch alone: the trackers have the config."""
        self._inner.header(info)

    def step(self, step: int, steps: int, loss: float, seconds: float, extra: Mapping[str, float]) -> None:
        """Loss, seconds and the named numbers."""
        self._inner.step(step, steps, loss, seconds, extra)
        self._log({"train/loss": loss, "train/seconds": seconds, **{f"train/{k}": v for k, v in extra.items()}}, step)

    def count(self, done: int, total: int, what: str) -> None:
        """To the inner watch alone."""
        self._inner.count(done, total, what)

    def eval(self, step: int, result: Mapping[str, float]) -> None:
        """The evaluation's numbers."""
        self._inner.eval(step, result)
        self._log({f"eval/{key}": value for key, value in result.items()}, step)

    def finish(self) -> None:
        """Close the trackers."""
        for name, tracker in list(self._trackers.items()):
            self._guarded(name, tracker.finish)

    def _log(self, values: dict[str, float], step: int) -> None:
        for name, tracker in list(self._trackers.items()):
            self._guarded(name, lambda tracker=tracker: tracker.log(values, step=step))

    def _guarded(self, name: str, call: Any) -> None:
        """A service that is down must not end a run of days: it is left out from here on, and that is said."""
        try:
            call()
        except Exception as error:  # whatever a tracker's own library raises
            del self._trackers[name]
            self._inner.say(f"{name} failed and is left out from here on: {type(error).__name__}: {error}")


@contextmanager
def tracked(config: TrainConfig, watch: Watch, leads: bool = True) -> Iterator[Watch]:
    """`watch`, and the trackers that the config names beside it; of several processes only one `leads`.

    Raises ConfigError for a name that accelerate does not know, UserError for one whose package is missing.
    """
    if not config.track or not leads:
        yield watch
        return
    names, folder = list(dict.fromkeys(config.track)), config.output_dir.absolute() / FOLDER
    with _placed(names, folder):
        both = Tracked(watch, {name: _open(name, config, folder) for name in names})
        try:
            yield both
        finally:
            both.finish()


def tracked_run(
    paths: RunPaths, watch: Watch, names: Sequence[str] | None, leads: bool = True
) -> AbstractContextManager[Watch]:
    """`tracked` for a run that goes on, with the trackers that the user names now.

    Those of its config are not started: the folder may come from somebody else, and some trackers send what they are
    told to a service, under the user's own account.
    """
    if not leads:
        return nullcontext(watch)
    config = config_of(paths)
    if names is None:
        if config.track:
            watch.say(
                f"The run's config names trackers ({', '.join(config.track)}); a run that goes on tells none unasked. "
                f"--track {','.join(config.track)} does."
            )
        return nullcontext(watch)
    return tracked(replace(config, track=list(names)), watch)


@contextmanager
def _placed(names: Sequence[str], folder: Path) -> Iterator[None]:
    """Where trackers write that are told so by their environment alone: below the run, where the user says nothing."""
    places = {"trackio": ("TRACKIO_DIR", str(folder / "trackio"))}
    places["mlflow"] = ("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
    new = dict(place for name, place in places.items() if name in names and place[0] not in os.environ)
    os.environ.update(new)
    try:
        yield
    finally:
        for variable in new:
            os.environ.pop(variable, None)


def _own(name: str, run: str, folder: Path) -> dict[str, Any]:
    """The arguments of a tracker that accelerate passes on: how the run is called, and where its files go."""
    if name == "wandb":
        return {"name": run, "dir": os.environ.get("WANDB_DIR", str(folder))}
    if name == "mlflow":
        return {"run_name": run, "logging_dir": str(folder / "mlflow")}
    return {"name": run} if name == "trackio" else {}


def _open(name: str, config: TrainConfig, folder: Path) -> Any:
    try:
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
    except ImportError:
        raise UserError("track needs accelerate. Remedy: pip install 'zotune[track]'.") from None
    if name not in LOGGER_TYPE_TO_CLASS:
        raise ConfigError(f"track: no tracker {name!r}. Remedy: one of {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}.")
    local = name == "wandb" and os.environ.get("WANDB_MODE") in ("offline", "disabled")
    if name in _SERVICES and offline() and not local:
        raise ConfigError(
            f"track: {name} connects to a service, and HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set. "
            "Remedy: another tracker, such as tensorboard, or unset them."
        )
    if name not in _names(get_available_trackers()):
        raise UserError(f"track: {name} is not installed. Remedy: pip install {name}.")
    kind: Any = LOGGER_TYPE_TO_CLASS[name]
    PartialState()  # accelerate's own log, to which its trackers write, wants it
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if kind.requires_logging_directory:
            # The tracker makes a folder of the run's name below.
            tracker = kind(config.output_dir.name, logging_dir=str(folder))
        else:
            tracker = kind("zotune", **_own(name, config.output_dir.name, folder))
        if hasattr(tracker, "start"):  # newer versions of accelerate begin here, older ones in the constructor
            tracker.start()
        tracker.store_init_configuration(_plain(config.portable()))
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"track: {name} cannot be started: {reason}. Remedy: check its own settings.") from None
    return tracker


def _names(trackers: Sequence[Any]) -> set[str]:
    return {str(getattr(tracker, "value", tracker)) for tracker in trackers}


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values that every tracker takes: numbers and texts."""
    return {
        key: value if isinstance(value, bool | int | float | str) else str(value)
        for key, value in values.items()
        if value is not None
    }
