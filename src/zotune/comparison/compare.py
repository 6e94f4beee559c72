"""Measure the rows of a comparison one after the other, each in a process of its own, and keep what is finished.

compare.json, compare.md  the table, written anew after every row
rows/NAME.json            a finished row, with the settings that it was measured with
runs/NAME/                the run of a zeroth-order row: it can be replayed, exported, resumed
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zotune.comparison.rows import Row
from zotune.comparison.table import markdown
from zotune.config import OPTIONS, TrainConfig
from zotune.disk import refusal
from zotune.durable import json_line, write_file
from zotune.errors import ConfigError, RunError
from zotune.lock import FolderLock
from zotune.watch import Watch

# Seconds that a row gets to end itself when the comparison is stopped.
_GRACE = 10.0


def compare(config: TrainConfig, rows: Sequence[Row], watch: Watch) -> dict[str, Any]:
    """Measure `rows`, made of the absolute `config`, into `config.output_dir`. Returns rows (a dict for each, in their
    order: what `work.measure` returns, or row and error), about (what they share) and folder.

    A row that cannot run says why in its place. Rows that an earlier call finished are not measured again, and the run
    of an unfinished one goes on. Raises ConfigError without held-out rows, RunError for a folder in use, one that
    cannot be written, or a row that was measured with other settings.
    """
    if config.eval is None and config.task is None:
        raise ConfigError("there are no rows to compare on. Remedy: --eval FILE, or --task NAME.")
    folder = config.output_dir
    with _held(folder):
        kept = {row.name: _kept(folder, row) for row in rows}
        found: list[dict[str, Any]] = []
        for number, row in enumerate(rows, start=1):
            before = kept[row.name]
            watch.say(f"{number} of {len(rows)}: {row.name}" + (", measured before" if before is not None else ""))
            result = before if before is not None else _measured(folder, row)
            found.append(_on_the_same_rows(found, result))
            if "error" in found[-1]:
                watch.say(f"{row.name} cannot run: {found[-1]['error']}")
            table = {"about": _about(config), "rows": [*found]}
            _write(folder / "compare.json", json_line(table) + "\n")
            _write(folder / "compare.md", markdown(table))
        return {**table, "folder": str(folder)}


@contextlib.contextmanager
def _held(folder: Path) -> Any:
    """The right to write in the folder, which is made if need be."""
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file. Remedy: choose another --output-dir.")
    try:
        (folder / "rows").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder} cannot be made: {error.strerror}. Remedy: choose another --output-dir.") from error
    lock = FolderLock.acquire(folder)
    try:
        yield
    finally:
        lock.release()


def _result_path(folder: Path, row: Row) -> Path:
    return folder / "rows" / f"{row.name}.json"


def _kept(folder: Path, row: Row) -> dict[str, Any] | None:
    """What an earlier call measured of this row, None if nothing. Raises RunError for other settings."""
    path = _result_path(folder, row)
    try:
        found = json.loads(path.read_bytes())
        before = found.pop("settings")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        raise RunError(f"{path} is not a measured row. Remedy: delete it, and the row is measured again.") from None
    if "error" in found:  # what was in its way may be gone
        return None
    now = json.loads(json_line(row.settings()))
    # An option that one of the two versions of zotune does not have decided nothing.
    both = [name for name in {**before, **now} if name not in OPTIONS or (name in before and name in now)]
    other = [name for name in both if before.get(name) != now.get(name)]
    if other:
        listed = "; ".join(f"{name} {before.get(name)!r} (now {now.get(name)!r})" for name in other)
        raise RunError(f"{path} was measured with {listed}. Remedy: the same settings, or another --output-dir.")
    return dict(found)


def _measured(folder: Path, row: Row) -> dict[str, Any]:
    """The row's own process. One that dies without a word has left the way in which it ended."""
    path = _result_path(folder, row)
    path.unlink(missing_ok=True)
    device, environment = _one_gpu(row.config.device)
    moved = dataclasses.replace(row, config=dataclasses.replace(row.config, device=device))
    job = {"row": moved.as_job(), "settings": row.settings(), "result": str(path)}
    # -P: nothing that lies where the command was started takes the place of a library.
    command = [sys.executable, "-P", "-m", "zotune.comparison.work"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment) as process:
        assert process.stdin is not None
        try:
            # A process that has died already does not read: how it ended is said below.
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write((json_line(job) + "\n").encode())
                process.stdin.flush()
            code = process.wait()
        except BaseException:
            _stop(process)
            raise
        finally:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
    if not path.exists():
        return {"row": row.name, "error": _ended(code)}
    found: dict[str, Any] = json.loads(path.read_bytes())
    del found["settings"]
    return found


def _stop(process: subprocess.Popen[bytes]) -> None:
    """What a run has recorded is durable: its process may end at any moment."""
    process.terminate()
    try:
        process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _ended(code: int) -> str:
    if code == -signal.SIGKILL:
        return "its process was killed, as a system does that runs out of memory."
    if code < 0:
        return f"its process ended by signal {-code} ({signal.strsignal(-code)})."
    return f"its process ended with code {code}; what it said stands above."


def _one_gpu(device: str) -> tuple[str, dict[str, str]]:
    """The device as the row's process calls it, and the environment in which it is the only GPU."""
    environment = dict(os.environ)
    kind, _, number = device.partition(":")
    if kind not in ("auto", "cuda") or (number and not number.isdigit()):
        return device, environment
    given = environment.get("CUDA_VISIBLE_DEVICES")
    names, place = None if given is None else given.split(","), int(number or 0)
    if names is None or place < len(names):
        environment["CUDA_VISIBLE_DEVICES"] = str(place) if names is None else names[place]
        device = kind
    return device, environment


def _on_the_same_rows(found: Sequence[dict[str, Any]], result: dict[str, Any]) -> dict[str, Any]:
    """The result, or an error in its place when its training or held-out rows are not those of the rows before."""
    for other in (each for each in found if "error" not in each and "error" not in result):
        for name, what in (("train_sha256", "training"), ("eval_sha256", "held-out")):
            if other[name] != result[name]:
                said = f"the {what} rows have changed since {other['row']} was measured. Remedy: another --output-dir."
                return {"row": result["row"], "error": said}
    return result


def _about(config: TrainConfig) -> dict[str, Any]:
    """What the rows share: model and rows, machine and versions."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import zotune
    from zotune.machine import processor

    about: dict[str, Any] = {
        "model": config.model,
        "train": config.task or str(config.train),
        "eval": str(config.eval) if config.eval else f"{config.task}, {config.eval_split} rows",
        "template": config.template,
        "label_words": config.label_words,
        "dtype": config.dtype,
        "device": config.device,
        "threads": config.threads,
        "processor": processor(),
        "python": platform.python_version(),
        "zotune": zotune.__version__,
    }
    for package in ("torch", "transformers", "peft", "accelerate"):
        with contextlib.suppress(PackageNotFoundError):
            about[package] = version(package)
    return {name: value for name, value in about.items() if value is not None}


def _write(path: Path, text: str) -> None:
    try:
        write_file(path, text.encode("utf-8"))
    except OSError as error:
        raise refusal(str(path), error, "choose another --output-dir") from error
