"""The watcher: a live line on a terminal, plain lines elsewhere, never on stdout, never in the way."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Mapping

import pytest

from zotune.watch import Console, Quiet, Watch, duration, memory_bytes, size


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """Yes."""
        return True


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        """The time."""
        return self.now


def run(console: Console, clock: Clock, steps: int, seconds: float) -> None:
    """Some steps that take `seconds` each."""
    for step in range(1, steps + 1):
        clock.now += seconds
        console.step(step, steps, 0.5, seconds, {"g": 1.25})


def screen(text: str) -> list[str]:
    """What a terminal shows of `text`: a carriage return writes over the line."""
    lines = []
    for line in text.split("\n"):
        shown: list[str] = []
        for part in line.split("\r"):
            shown[: len(part)] = part
        lines.append("".join(shown).rstrip())
    return lines


def test_plain_lines_are_rare() -> None:
    """Without a terminal a line comes about every five seconds, and for the first and the last step."""
    stream, clock = io.StringIO(), Clock()
    run(Console(stream, clock, {}), clock, 100, 0.25)
    steps = [int(found) for found in re.findall(r"step (\d+)/100", stream.getvalue())]
    assert steps == [1, 21, 41, 61, 81, 100]
    assert "\r" not in stream.getvalue() and "\x1b" not in stream.getvalue()


def test_a_line_says_loss_rate_eta_and_memory() -> None:
    """The parts of a progress line."""
    stream, clock = io.StringIO(), Clock()
    Console(stream, clock, {}).step(10, 250, 0.69314, 0.5, {"memory_bytes": 1.25e9, "g": -12.5, "tokens/s": 640})
    assert (
        stream.getvalue() == "step 10/250  loss 0.6931  g -12.5  2.00 steps/s  ETA 2m00s  memory 1.2 GB  tokens/s 640\n"
    )


def test_the_line_remembers_the_last_evaluation() -> None:
    """Its first score, until the next one."""
    stream, clock = io.StringIO(), Clock()
    console = Console(stream, clock, {})
    console.eval(0, {"accuracy": 0.5, "loss": 0.7})
    console.step(1, 1, 0.5, 1.0, {"memory_bytes": 1e6})
    console.eval(1, {"reward": 0.25})
    console.step(1, 1, 0.5, 1.0, {"memory_bytes": 1e6})
    lines = [line for line in stream.getvalue().splitlines() if line.startswith("step")]
    assert lines[0].endswith("memory 1 MB  eval accuracy 50.0 %") and lines[1].endswith("eval reward 0.250")


def test_nan_is_shown() -> None:
    """A loss that is not a number is not hidden; a slow step shows seconds per step; memory is measured."""
    stream = io.StringIO()
    Console(stream, Clock(), {}).step(1, 2, float("nan"), 20.0, {})
    assert re.fullmatch(r"step 1/2  loss nan  20.0 s/step  ETA 20s  memory \d+ MB\n", stream.getvalue())


def test_live_line_is_drawn_over() -> None:
    """On a terminal the line is one; a sentence or an evaluation goes above it; the last state stays."""
    stream, clock = Terminal(), Clock()
    console = Console(stream, clock, {"NO_COLOR": "1"})
    console.step(1, 3, 0.123456, 1.0, {"memory_bytes": 1e6, "long": 123456})
    clock.now += 1
    console.step(2, 3, 0.2, 1.0, {"memory_bytes": 1e6})
    console.say("a sentence")
    clock.now += 1
    console.step(3, 3, 0.3, 1.0, {"memory_bytes": 1e6})
    console.eval(3, {"accuracy": 0.75, "loss": 0.5, "low": 0.7, "high": 0.8, "examples": 600})
    assert screen(stream.getvalue()) == [
        "a sentence",
        "step 3/3  loss 0.3000  1.00 steps/s  ETA 0s  memory 1 MB",
        "evaluation after 3 steps: accuracy 75.0 % (95 % interval 70.0 to 80.0), loss 0.5000, 600 examples",
        "",
    ]


def test_live_line_is_limited() -> None:
    """A thousand quick steps draw at most ten times a second."""
    stream, clock = Terminal(), Clock()
    run(Console(stream, clock, {}), clock, 1000, 0.001)
    assert 5 <= stream.getvalue().count("\r") <= 12


def test_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The live line never wraps."""
    monkeypatch.setenv("COLUMNS", "20")
    stream = Terminal()
    Console(stream, Clock(), {}).step(1, 2, 0.5, 1.0, {})
    assert stream.getvalue() == "\rstep 1/2  loss 0.50"


@pytest.mark.parametrize(
    ("stream", "environment", "bold"),
    [
        (Terminal(), {}, True),
        (Terminal(), {"NO_COLOR": "1"}, False),
        (Terminal(), {"TERM": "dumb"}, False),
        (io.StringIO(), {}, False),
    ],
)
def test_header_and_colour(stream: io.StringIO, environment: Mapping[str, str], bold: bool) -> None:
    """Names are aligned; only a terminal without NO_COLOR gets an escape sequence."""
    Console(stream, Clock(), environment).header({"method": "mezo", "lr": "1e-6"})
    assert ("\x1b[1m" in stream.getvalue()) == bold
    plain = re.sub(r"\x1b\[\d+m", "", stream.getvalue())
    assert plain == "method  mezo\nlr      1e-6\n"


def test_dumb_terminal_gets_lines() -> None:
    """TERM=dumb cannot go back in a line."""
    stream = Terminal()
    Console(stream, Clock(), {"TERM": "dumb"}).step(1, 2, 0.5, 1.0, {})
    assert "\r" not in stream.getvalue()


def test_eval_without_accuracy() -> None:
    """A language-model evaluation has a loss alone."""
    stream = io.StringIO()
    Console(stream, Clock(), {}).eval(0, {"loss": 2.5, "examples": 3})
    assert stream.getvalue() == "evaluation after 0 steps: loss 2.5000, 3 examples\n"


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ({"f1": 0.25, "low": 0.2, "high": 0.3, "loss": -0.25}, "F1 25.0 % (95 % interval 20.0 to 30.0), loss -0.2500"),
        ({"macro_f1": 0.5, "loss": -0.5}, "macro F1 50.0 %, loss -0.5000"),
        ({"reward": 3.5, "low": 3, "high": 4, "loss": -3.5}, "reward 3.5000 (95 % interval 3.000 to 4.000), loss -3.5"),
        ({"metric": 0.125, "loss": -0.125}, "metric 0.1250, loss -0.1250"),
        (
            {"reward": 1.0, "reward_a": 0.5, "reward_b": 2, "loss": -1},
            "reward 1.0000, reward_a 0.5000, reward_b 2.0000, loss",
        ),
    ],
)
def test_eval_of_a_score(result: dict[str, float], said: str) -> None:
    """Shares of 1 as per cent, rewards and metrics on their own scale; an interval where there is one."""
    stream = io.StringIO()
    Console(stream, Clock(), {}).eval(2, result | {"examples": 3})
    assert stream.getvalue().startswith(f"evaluation after 2 steps: {said}")


def test_default_stream_is_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing goes to stdout."""
    Console().say("hello")
    assert capsys.readouterr() == ("", "hello\n")


def test_narrow_encoding_and_a_closed_reader() -> None:
    """Letters that the stream cannot hold are replaced; a reader that is gone does not end the run."""
    raw = io.BytesIO()
    narrow = io.TextIOWrapper(raw, "ascii")
    Console(narrow, Clock(), {}).say("é")
    assert raw.getvalue() == b"?\n"
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as stream:
        Console(stream, Clock(), {}).say("nobody hears this")
        os.dup2(os.open(os.devnull, os.O_WRONLY), write)  # so that closing does not fail either


def test_quiet_is_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    """The quiet watcher writes nothing anywhere."""
    watch: Watch = Quiet()
    watch.say("x")
    watch.header({"a": "b"})
    watch.step(1, 1, 0.5, 1.0, {})
    watch.eval(1, {"loss": 1.0})
    assert capfd.readouterr() == ("", "")


def test_console_is_a_watch() -> None:
    """Both classes fit the protocol (mypy checks the same)."""
    for kind in (Console, Quiet):
        for name in ("say", "header", "step", "eval"):
            assert callable(getattr(kind, name)) and hasattr(Watch, name)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.4, "59s"), (59.6, "1m00s"), (3599, "59m59s"), (7500, "2h05m"), (-1, "0s")],
)
def test_duration(seconds: float, text: str) -> None:
    """Seconds in words."""
    assert duration(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(5, "5 B"), (34000, "34 kB"), (8.5e8, "850 MB"), (1.24e9, "1.2 GB")])
def test_size(count: float, text: str) -> None:
    """Bytes in words."""
    assert size(count) == text


def test_memory_is_measured() -> None:
    """This process occupies some megabytes and no terabyte."""
    assert sys.platform == "win32" or 10**6 < memory_bytes() < 10**12
