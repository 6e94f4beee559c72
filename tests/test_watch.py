"""The watcher: a live line on a terminal, plain lines elsewhere, never on stdout, never in the way."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Mapping

import pytest

from zotune.watch import Console, Quiet, Watch, duration, memory_bytes, packed, size


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
    """What a terminal shows of `text`: a carriage return, a way up, and what is cleared behind the cursor."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[\d*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", text):
        if part == "\r":
            column = 0
        elif part == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif part.endswith("A") and part.startswith("\x1b"):
            row -= int(part[2:-1])
        elif part == "\x1b[K":
            lines[row] = lines[row][:column]
        elif part == "\x1b[J":
            lines[row:] = [lines[row][:column]]
        elif not part.startswith("\x1b"):
            lines[row] = lines[row][:column].ljust(column) + part + lines[row][column + len(part) :]
            column += len(part)
    return [line.rstrip() for line in lines]


def test_plain_lines_are_rare() -> None:
    """Without a terminal a line comes about every five seconds, and for the first and the last step."""
    stream, clock = io.StringIO(), Clock()
    run(Console(stream, clock, {}), clock, 100, 0.25)
    steps = [int(found) for found in re.findall(r"step (\d+)/100", stream.getvalue())]
    assert steps == [1, 21, 41, 61, 81, 100]
    assert "\r" not in stream.getvalue() and "\x1b" not in stream.getvalue()


def test_a_line_says_loss_rate_eta_and_memory() -> None:
    """The parts of a progress line, those of most worth first, within 80 characters."""
    stream, clock = io.StringIO(), Clock()
    extra = {"memory_bytes": 1.25e9, "g": -12.5, "snr": 1.5, "forwards/s": 4.0, "tokens/s": 640}
    Console(stream, clock, {}).step(10, 250, 0.69314, 0.5, extra)
    assert stream.getvalue() == ("step 10/250  loss 0.6931  4.00 fwd/s  640 tok/s  ETA 2m00s  snr 1.5  |g| 12.5\n")


def test_no_part_is_cut() -> None:
    """In any width, on one line or two, every part is whole, and those of most worth are there."""
    parts = ["step 1200/5000", "loss 0.6931", "eval 72.5 %", "4.10 fwd/s", "640 tok/s", "ETA 12m05s", "memory 1.2 GB"]
    for width in range(14, 120):
        for most in (1, 2):
            lines = packed(parts, width, most)
            assert len(lines) <= most and all(len(line) <= width for line in lines)
            assert all(part in parts for line in lines for part in line.split("  "))
    assert packed(parts, 79, 1) == ["  ".join(parts[:-1])]
    assert packed(parts, 79, 2) == ["  ".join(parts[:-1]), parts[-1]]
    assert packed(parts, 10, 1) == ["step 1200/"]  # a terminal for which even the first part is too long


def test_rates_agree() -> None:
    """Forwards and tokens a second are smoothed as the time that is left is, and the first step counts for nothing."""
    stream, clock = io.StringIO(), Clock()
    console = Console(stream, clock, {})
    for step in range(1, 202):
        seconds = 60.0 if step == 1 else 0.5 if step % 2 else 1.5
        console.step(step, 1001, 0.5, seconds, {"forwards/s": 2 / seconds, "tokens/s": 100 / seconds})
        clock.now += seconds
    said = stream.getvalue().splitlines()[-1]
    rates = re.search(r"([\d.]+) fwd/s  ([\d.]+) tok/s  ETA (\d+)m(\d+)s", said)
    assert rates is not None, said
    forwards, tokens, left = float(rates[1]), float(rates[2]), 60 * int(rates[3]) + int(rates[4])
    steps = 1001 - int(re.search(r"step (\d+)/", said)[1])  # type: ignore[index]
    assert tokens == pytest.approx(50 * forwards, rel=0.01)
    assert forwards == pytest.approx(2 * steps / left, rel=0.01)
    assert left == pytest.approx(steps * 1.0, rel=0.1)


def test_the_line_remembers_the_last_evaluation() -> None:
    """Its first score, until the next one."""
    stream, clock = io.StringIO(), Clock()
    console = Console(stream, clock, {})
    console.eval(0, {"accuracy": 0.5, "loss": 0.7})
    console.step(1, 1, 0.5, 1.0, {"memory_bytes": 1e6})
    console.eval(1, {"reward": 0.25})
    console.step(1, 1, 0.5, 1.0, {"memory_bytes": 1e6})
    lines = [line for line in stream.getvalue().splitlines() if line.startswith("step")]
    assert lines[0].startswith("step 1/1  loss 0.5000  eval 50.0 %  1.00 steps/s  ETA 0s  memory 1 MB")
    assert "  eval reward 0.250  " in lines[1]


def test_nan_is_shown() -> None:
    """A loss that is not a number is not hidden; memory is measured; a step that was left out has no slope."""
    stream = io.StringIO()
    Console(stream, Clock(), {}).step(1, 2, float("nan"), 20.0, {"g": float("nan")})
    assert re.fullmatch(r"step 1/2  loss nan  0.05 steps/s  ETA 20s  memory \d+ MB\n", stream.getvalue())


def test_live_line_is_drawn_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal it is one or two lines; a sentence or an evaluation goes above; the last state stays."""
    monkeypatch.setenv("COLUMNS", "48")
    stream, clock = Terminal(), Clock()
    console = Console(stream, clock, {"NO_COLOR": "1"})
    console.step(1, 3, 0.123456, 1.0, {"memory_bytes": 1e6, "long": 123456})
    assert screen(stream.getvalue()) == ["step 1/3  loss 0.1235  1.00 steps/s  ETA 2s", "memory 1 MB  long 1.235e+05"]
    clock.now += 1
    console.step(2, 3, 0.2, 1.0, {"memory_bytes": 1e6, "g": 2.0})
    assert screen(stream.getvalue()) == ["step 2/3  loss 0.2000  1.00 steps/s  ETA 1s", "memory 1 MB  |g| 2"]
    console.say("a sentence")
    clock.now += 1
    console.step(3, 3, 0.3, 1.0, {"memory_bytes": 1e6})
    console.eval(3, {"accuracy": 0.75, "loss": 0.5, "low": 0.7, "high": 0.8, "examples": 600})
    assert screen(stream.getvalue()) == [
        "a sentence",
        "step 3/3  loss 0.3000  1.00 steps/s  ETA 0s",
        "memory 1 MB  |g| 2",
        "evaluation after 3 steps: accuracy 75.0 % (95 % interval 70.0 to 80.0), loss 0.5000, 600 examples",
        "",
    ]


def test_other_work_is_counted() -> None:
    """A live line of its own, with the time that is left; its end stays."""
    stream, clock = Terminal(), Clock()
    console = Console(stream, clock, {})
    for done in range(1, 5):
        console.count(done, 4, "forward")
        clock.now += 2
    assert screen(stream.getvalue()) == ["forward 4/4  ETA 0s", ""]
    assert "forward 3/4  ETA 1s" in stream.getvalue()
    plain = io.StringIO()
    Console(plain, clock, {}).count(1, 2, "forward")
    assert plain.getvalue() == "forward 1/2\n"


def test_live_line_is_limited() -> None:
    """A thousand quick steps draw at most ten times a second."""
    stream, clock = Terminal(), Clock()
    run(Console(stream, clock, {}), clock, 1000, 0.001)
    assert 5 <= stream.getvalue().count("\r") <= 12


def test_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The live lines never wrap: parts that do not fit are left out."""
    monkeypatch.setenv("COLUMNS", "20")
    stream = Terminal()
    Console(stream, Clock(), {}).step(1, 2, 0.5, 1.0, {})
    assert screen(stream.getvalue()) == ["step 1/2", "loss 0.5000  ETA 1s"]


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
    watch.count(1, 1, "forward")
    watch.eval(1, {"loss": 1.0})
    assert capfd.readouterr() == ("", "")


def test_console_is_a_watch() -> None:
    """Both classes fit the protocol (mypy checks the same)."""
    for kind in (Console, Quiet):
        for name in ("say", "header", "step", "count", "eval"):
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
