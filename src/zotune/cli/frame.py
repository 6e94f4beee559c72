"""What all subcommands share: one error line, exit codes, signals, the JSON at the end of stdout."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, final

import typer

from zotune.durable import json_line
from zotune.errors import Terminated, UserError
from zotune.run import RunPaths
from zotune.watch import Console, Quiet, Watch

if TYPE_CHECKING:
    from zotune.distributed.group import Group

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, the last line of stdout.")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of the run.", show_default=False)]
Force = Annotated[bool, typer.Option("--force", help="Replace a folder that has content.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Let the model's own code run. Never taken from a file.")
]
AllowTaskCode = Annotated[
    bool, typer.Option("--allow-task-code", help="Let a task's YAML run functions of its folder. Never from a file.")
]

TrustReward = Annotated[
    bool, typer.Option("--trust-reward", help="Import the reward or metric that the run's config names.")
]


@final
class Session:
    """One command at work: where it talks, and the run it writes to (for the message when it is stopped)."""

    def __init__(self) -> None:
        self.console = Console()
        self.watch: Watch = self.console
        self.run: Path | None = None
        self.group: Group | None = None

    @property
    def leads(self) -> bool:
        """Whether this process speaks for its group."""
        return self.group is None or self.group.rank == 0

    @contextlib.contextmanager
    def joined(self) -> Iterator[Group | None]:
        """With the other processes that torchrun started, if any; only the first of them talks."""
        from zotune.distributed.launch import joined

        with joined() as self.group:
            if not self.leads:
                self.watch = Quiet()
            yield self.group


def execute(body: Callable[[Session], Any], as_json: bool, show: Callable[[Session, Any], None] | None = None) -> None:
    """Run a command's body, print its result, and leave through typer.Exit with the right code.

    Whatever is said or printed meanwhile goes to stderr: stdout holds the result alone, as JSON or, with `show`, in
    words.
    """
    session = Session()
    try:
        with _signals(session.console), _logging(session), contextlib.redirect_stdout(sys.stderr):
            result = body(session)
        if not as_json and session.leads:
            session.watch = session.console = Console(sys.stdout)
            (show or _show)(session, result)
            _flush()
    except UserError as error:
        raise typer.Exit(_left(session, _fail(session, error, str(error), error.exit_code, as_json))) from None
    except KeyboardInterrupt as error:
        code = _fail(session, error, _stopped("interrupted", session.run), 130, as_json)
        raise typer.Exit(_left(session, code)) from None
    except Terminated as error:
        code = _fail(session, error, _stopped("stopped by SIGTERM", session.run), 143, as_json)
        raise typer.Exit(_left(session, code)) from None
    except Exception as error:
        if _is_shortage(error):
            raise typer.Exit(_left(session, fail(_out_of_memory(error), 8, as_json))) from None
        from zotune.versions import explained

        if (told := explained(error)) is not None:
            raise typer.Exit(_left(session, fail(told, 2, as_json))) from error
        # A bug: its traceback is what helps, and a reader of stdout learns of it too.
        if as_json:
            print_json({"error": f"{type(error).__name__}: {error}"})
        if session.group is not None and session.group.given_up:
            traceback.print_exc()
            _left(session, 1)
        raise
    if as_json and session.leads:
        print_json(result)


def _left(session: Session, code: int) -> int:
    """The code to leave with; where an exchange with other processes was given up, the process ends here."""
    if session.group is not None and session.group.given_up:
        _flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _fail(session: Session, error: BaseException, message: str, code: int, as_json: bool) -> int:
    """As `fail`; of several processes that fail alike, one speaks."""
    if session.group is not None and not session.leads and session.group.heard is error:
        return code
    return fail(message, code, as_json and session.leads)


def fail(message: str, code: int, as_json: bool) -> int:
    """Say `message` as one line on stderr, and as JSON if asked. Returns `code`."""
    with contextlib.suppress(OSError):
        print(f"zotune: {' '.join(message.split())}", file=sys.stderr, flush=True)
    if as_json:
        print_json({"error": message})
    return code


def print_json(value: Any) -> None:
    """One line of JSON on stdout. A reader that is gone is no error."""
    try:
        sys.stdout.write(json_line(value) + "\n")
    except BrokenPipeError:
        pass
    _flush()


def _flush() -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the flush at exit must not fail again


def _is_shortage(error: Exception) -> bool:
    if "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    from zotune.machine import is_shortage

    return is_shortage(error)


def _out_of_memory(error: Exception) -> str:
    from zotune.machine import shortage_said

    return (
        f"{shortage_said(error)}. No recorded step is lost. Remedy: `zotune plan` with the same options says which "
        "part is the largest; a smaller --rows-per-forward or --eval-batch-size, or --dtype bfloat16, needs less."
    )


def _stopped(how: str, run: Path | None) -> str:
    if run is None:
        return f"{how}. Remedy: start the command again."
    if RunPaths(run).journal.exists():
        return f"{how}. Nothing is lost. Remedy: continue with `zotune resume {shlex.quote(str(run))}`."
    return f"{how} before a step was recorded. Remedy: start the command again."


def _show(session: Session, result: Any) -> None:
    """Names and values of a result."""
    session.watch.header({str(name): _text(value) for name, value in result.items() if value is not None})


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


@contextlib.contextmanager
def _signals(watch: Console) -> Iterator[None]:
    """SIGTERM ends the command like Ctrl-C does, with everything closed on the way out.

    Python drops an exception that falls into a finaliser; the watcher raises it again at the next step.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        watch.stop = Terminated() if number == signal.SIGTERM else KeyboardInterrupt()
        raise watch.stop

    numbers = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where it is ignored, as under nohup
        numbers.append(signal.SIGINT)
    before = [(number, signal.signal(number, stop)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


@contextlib.contextmanager
def _logging(session: Session) -> Iterator[None]:
    """What the package logs is said by the watcher, so that it does not cut into the live line."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            session.watch.say(record.getMessage())

    logger = logging.getLogger("zotune")
    handler, level = Handler(logging.INFO), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
