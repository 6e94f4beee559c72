"""What a run says while it works: to stderr, for stdout is for a command's result. Standard library only."""

from __future__ import annotations

import math
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TextIO, final

PLAIN_SECONDS = 5.0  # between two lines without a terminal
LIVE_SECONDS = 0.1  # between two drawings of the live line
# What an evaluation may say beside the accuracy: shares of 1, and numbers on a scale of their own.
SHARES = {"accuracy": "accuracy", "f1": "F1", "exact_match": "exact match", "macro_f1": "macro F1"}
NUMBERS = ("reward", "metric")
SCORES = (*list(SHARES)[1:], *NUMBERS)
SMOOTHING = 0.1  # weight of the newest step in its pace, and in what is counted for each
_LINES = 2  # of a terminal, at most, that the live display takes
_PLAIN_WIDTH = 80  # characters of a line without a terminal
_SLOPES = 51  # steps whose slopes' median is said
# How rates of `extra` are called, and what else of it is said, in the order of their worth.
_RATES = {"forwards/s": "fwd/s", "tokens/s": "tok/s"}
_NAMED = ("snr", "g", "memory_bytes", *_RATES)


class Watch(Protocol):
    """What the training loop tells its watcher. It may be called every step: the watcher limits itself."""

    def say(self, text: str) -> None:
        """A plain sentence."""

    def header(self, info: Mapping[str, str]) -> None:
        """What this run is, once, as names and values."""

    def step(self, step: int, steps: int, loss: float, seconds: float, extra: Mapping[str, float]) -> None:
        """`step` of `steps` are done, this one included; it took `seconds`.

        `extra` holds named numbers to show, those of this step; `memory_bytes` among them replaces the memory of the
        process.
        """

    def count(self, done: int, total: int, what: str) -> None:
        """`done` of `total` pieces of other work are done, each a `what`."""

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

    def count(self, done: int, total: int, what: str) -> None:
        """Nothing."""

    def eval(self, step: int, result: Mapping[str, float]) -> None:
        """Nothing."""


@final
class Console:
    """A live line or two on a terminal, elsewhere a plain line every few seconds. Heeds NO_COLOR and TERM=dumb."""

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
        self._drawn = 0  # live lines on the screen
        self._next = -1.0  # when the next line is due
        self._last = ""  # the last evaluation, in short
        self._pace: dict[str, float] = {}  # seconds of a step, and of each rate what a step adds to it; smoothed
        self._seen = 0  # steps in it
        self._slopes: deque[float] = deque(maxlen=_SLOPES)
        self._begun = 0.0  # when what is counted began
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
        self._smooth({"seconds": seconds} | {name: extra[name] * seconds for name in _RATES if name in extra})
        if math.isfinite(extra.get("g", math.nan)):
            self._slopes.append(abs(extra["g"]))
        if self._due(step >= steps):
            self._show(self._progress(step, steps, loss, extra), step >= steps)

    def count(self, done: int, total: int, what: str) -> None:
        """The progress, when its turn has come, and the time that is left if all pieces take as long."""
        if self.stop is not None:
            raise self.stop
        now = self._clock()
        self._begun = self._begun or now
        if self._due(done >= total):
            left = duration((total - done) * (now - self._begun) / max(done, 1))
            self._show([f"{what} {done}/{total}"] + [f"ETA {left}"] * (now > self._begun), done >= total)
        if done >= total:
            self._begun = 0.0

    def eval(self, step: int, result: Mapping[str, float]) -> None:
        """The result of an evaluation on a line of its own."""
        parts = []
        low, high = result.get("low"), result.get("high")
        short = [f"{name} {100 * result[key]:.1f} %" for key, name in SHARES.items() if result.get(key) is not None]
        short += [f"{key} {result[key]:.3f}" for key in (*NUMBERS, "loss") if result.get(key) is not None]
        self._last = f"eval {short[0].removeprefix('accuracy ')}" if short else ""
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

    def _smooth(self, found: Mapping[str, float]) -> None:
        """The first step, which compiles and looks around, counts as long as it is the only one."""
        self._seen += 1
        for name, value in found.items():
            before = self._pace.get(name)
            alone = before is None or self._seen <= 2
            self._pace[name] = value if alone else before + SMOOTHING * (value - before)  # type: ignore[operator]

    def _progress(self, step: int, steps: int, loss: float, extra: Mapping[str, float]) -> list[str]:
        """The parts of the line, those of most worth first."""
        parts = [f"step {step}/{steps}", f"loss {loss:.4f}", *([self._last] if self._last else [])]
        pace = self._pace["seconds"]
        if pace > 0:
            rates = {word: self._pace[name] / pace for name, word in _RATES.items() if name in self._pace}
            parts += [f"{_rate(value)} {word}" for word, value in (rates or {"steps/s": 1 / pace}).items()]
            parts.append(f"ETA {duration((steps - step) * pace)}")
        parts += [f"snr {extra['snr']:.3g}"] if "snr" in extra else []
        memory = extra.get("memory_bytes") or memory_bytes()
        parts += [f"memory {size(memory)}"] if memory else []
        parts += [f"|g| {sorted(self._slopes)[len(self._slopes) // 2]:.3g}"] if self._slopes else []
        return parts + [f"{name} {value:.4g}" for name, value in extra.items() if name not in _NAMED]

    def _due(self, last: bool) -> bool:
        """Whether it is time for another line."""
        now = self._clock()
        if now < self._next and not last:
            return False
        self._next = now + (LIVE_SECONDS if self._live else PLAIN_SECONDS)
        return True

    def _show(self, parts: Sequence[str], last: bool) -> None:
        """Whole parts, as many as there is room for."""
        if not self._live:
            self._line(packed(parts, _PLAIN_WIDTH, 1)[0])
            return
        lines = packed(parts, max(1, self._width() - 1), _LINES)
        # Up to where the last one began, over it, and what it had more of is cleared.
        up = f"\x1b[{self._drawn - 1}A" if self._drawn > 1 else ""
        self._write(f"{up}\r" + "\n".join(f"{line}\x1b[K" for line in lines) + "\x1b[J")
        self._drawn = len(lines)
        if last:
            self._write("\n")
            self._drawn = 0

    def _width(self) -> int:
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or 80
        except (OSError, ValueError):
            return shutil.get_terminal_size().columns

    def _bold(self, text: str) -> str:
        return f"\x1b[1m{text}\x1b[0m" if self._colour else text

    def _line(self, text: str) -> None:
        if self._drawn:  # rub out the live lines; the next step draws them again
            self._write(f"\x1b[{self._drawn - 1}A\r\x1b[J" if self._drawn > 1 else "\r\x1b[J")
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


def packed(parts: Sequence[str], width: int, most: int) -> list[str]:
    """The parts in lines of at most `width` characters, none of them cut; those that `most` lines do not hold are left
    out. Only a first part that is longer than a line is cut.
    """
    lines = [parts[0][:width]]
    for part in parts[1:]:
        if len(lines[-1]) + 2 + len(part) <= width:
            lines[-1] += f"  {part}"
        elif len(lines) < most and len(part) <= width:
            lines.append(part)
    return lines


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


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
