"""What a run says while it works: to stderr, for stdout is for a command's result. Standard library only."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, TextIO, final

PLAIN_SECONDS = 5.0  # between two lines without a terminal
LIVE_SECONDS = 0.1  # between two drawings of the live line
# What an evaluation may say beside the accuracy: shares of 1, and numbers on a scale of their own.
SHARES = {"accuracy": "accuracy", "f1": "F1", "exact_match": "exact match", "macro_f1": "macro F1"}
NUMBERS = ("reward", "metric")
SCORES = (*list(SHARES)[1:], *NUMBERS)
_FIRST = ("g", "snr")  # what is said of a step before its pace
SMOOTHING = 0.1  # weight of the newest step in the rate


class Watch(Protocol):
    """What the training loop tells its watcher. It may be called every step: the watcher limits itself."""

    def say(self, text: str) -> None:
        """A plain sentence."""

    def header(self, info: Mapping[str, str]) -> None:
        """What this run is, once, as names and values."""

    def step(self, step: int, steps: int, loss: float, seconds: float, extra: Mapping[str, float]) -> None:
        """`step` of `steps` are done, this one included; it took `seconds`.

        `extra` holds named numbers to show; `memory_bytes` among them replaces the memory of the process.
        """

    def eval(self, step: int, result: Mapping[str, float]) -> None:
        """An evaluation after `step` steps: `accuracy` or another metric, `loss`, `low`, `high`, `examples`."""


@final
class Quiet:
    """Says nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def header(self, info: Mapping[str, str]) -> None:
        """Nothing."""

    def step(self, step: int, steps: int, loss: float, seconds: float, extra: Mapping[str, float]) -> None:
        """Nothing."""

    def eval(self, step: int, result: Mapping[str, float]) -> None:
        """Nothing."""


@final
class Console:
    """One live line on a terminal, elsewhere a plain line every few seconds. Heeds NO_COLOR and TERM=dumb."""

    def __init__(
        self,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        environment: Mapping[str, str] = os.environ,
    ):
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._live = self._stream.isatty() and environment.get("TERM") != "dumb"
        self._colour = self._live and not environment.get("NO_COLOR")
        self._drawn = 0  # width of the live line on the screen
        self._next = -1.0  # when the next line is due
        self._last = ""  # the last evaluation, in short
        self._pace = 0.0  # smoothed seconds per step; 0 before the first
        self.stop: BaseException | None = None  # raised at the next step, where a signal's own exception was lost

    def say(self, text: str) -> None:
        """A plain sentence on a line of its own."""
        self._line(text)

    def header(self, info: Mapping[str, str]) -> None:
        """Names and values, aligned."""
        width = max(map(len, info), default=0)
        for name, value in info.items():
            self._line(f"{self._bold(name)}{' ' * (width - len(name))}  {value}")

    def step(self, step: int, steps: int, loss: float, seconds: float, extra: Mapping[str, float]) -> None:
        """The progress, when its turn has come; always for the first and the last step."""
        if self.stop is not None:
            raise self.stop
        self._pace = seconds if self._pace == 0 else self._pace + SMOOTHING * (seconds - self._pace)
        now = self._clock()
        if now < self._next and step < steps:
            return
        self._next = now + (LIVE_SECONDS if self._live else PLAIN_SECONDS)
        text = self._progress(step, steps, loss, extra)
        if not self._live:
            self._line(text)
            return
        text = text[: max(1, self._width() - 1)]
        self._write("\r" + text + " " * (self._drawn - len(text)))
        self._drawn = len(text)
        if step >= steps:
            self._write("\n")
            self._drawn = 0

    def eval(self, step: int, result: Mapping[str, float]) -> None:
        """The result of an evaluation on a line of its own."""
        parts = []
        low, high = result.get("low"), result.get("high")
        short = [f"{name} {100 * result[key]:.1f} %" for key, name in SHARES.items() if result.get(key) is not None]
        short += [f"{key} {result[key]:.3f}" for key in (*NUMBERS, "loss") if result.get(key) is not None]
        self._last = f"eval {short[0]}" if short else ""
        for key, name in SHARES.items():
            if result.get(key) is None:
                continue
            interval = "" if low is None or high is None else f" (95 % interval {100 * low:.1f} to {100 * high:.1f})"
            parts.append(f"{name} {100 * result[key]:.1f} %{interval}")
        for key in NUMBERS:
            if result.get(key) is None:
                continue
            interval = "" if low is None or high is None else f" (95 % interval {low:.3f} to {high:.3f})"
            parts.append(f"{key} {result[key]:.4f}{interval}")
        if result.get("acc_norm") is not None:  # of another rule, so without the accuracy's interval
            parts.append(f"acc_norm {100 * result['acc_norm']:.1f} %")
        parts += [f"{key} {value:.4f}" for key, value in result.items() if key.startswith("reward_")]
        if result.get("loss") is not None:
            parts.append(f"loss {result['loss']:.4f}")
        if result.get("examples") is not None:
            parts.append(f"{int(result['examples'])} examples")
        self._line(f"evaluation after {step} steps: " + ", ".join(parts))

    def _progress(self, step: int, steps: int, loss: float, extra: Mapping[str, float]) -> str:
        parts = [f"step {step}/{steps}", f"loss {loss:.4f}"]
        parts += [f"{name} {value:.3g}" for name, value in extra.items() if name in _FIRST]
        if self._pace > 0:
            rate = 1 / self._pace
            parts.append(f"{rate:.2f} steps/s" if rate >= 0.1 else f"{self._pace:.1f} s/step")
            parts.append(f"ETA {duration((steps - step) * self._pace)}")
        memory = extra.get("memory_bytes") or memory_bytes()
        if memory:
            parts.append(f"memory {size(memory)}")
        parts += [self._last] if self._last else []
        parts += [f"{name} {value:.4g}" for name, value in extra.items() if name not in (*_FIRST, "memory_bytes")]
        return "  ".join(parts)

    def _width(self) -> int:
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or 80
        except (OSError, ValueError):
            return shutil.get_terminal_size().columns

    def _bold(self, text: str) -> str:
        return f"\x1b[1m{text}\x1b[0m" if self._colour else text

    def _line(self, text: str) -> None:
        if self._drawn:  # rub out the live line; the next step draws it again
            self._write("\r" + " " * self._drawn + "\r")
            self._drawn = 0
        self._write(text + "\n")

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except UnicodeEncodeError:  # a terminal that cannot show every letter must not end a run
            encoding = self._stream.encoding or "ascii"
            self._stream.write(text.encode(encoding, "replace").decode(encoding))
            self._stream.flush()
        except OSError:  # whoever read stderr is gone: the run goes on
            pass


def duration(seconds: float) -> str:
    """Seconds as people say them: 42s, 3m20s, 2h05m."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def size(count: float) -> str:
    """Bytes with a unit of 1,000s: 850 MB, 1.2 GB."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def memory_bytes() -> int:
    """Memory that this process occupies now (its peak where the system does not tell); 0 when unknown."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        pass
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
