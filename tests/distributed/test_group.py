"""Messages between processes, and how an error of one becomes an error of all: one process, others played to it."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch.distributed as dist

from zotune.distributed.group import Group
from zotune.errors import ConfigError, NonFiniteLoss, RunError, Terminated

Room = Callable[[bytes, int], list[bytes]]
FINE, LOST, LEFT_OUT, FAILED, STOPPED = range(5)


@pytest.fixture
def group() -> Iterator[Group]:
    """A group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield Group()
    finally:
        dist.destroy_process_group()


def framed(code: int, message: bytes) -> bytes:
    """What a process sends: how it goes, how long the message is, and the message."""
    return bytes([code]) + len(message).to_bytes(4, "little") + message


def joined_by(*others: bytes) -> Room:
    """What an exchange gives where other processes, behind this one, send these frames."""
    return lambda own, room: [each[:room].ljust(room, b"\0") for each in (own, *others)]


def told(kind: str, text: str) -> bytes:
    return json.dumps({"kind": kind, "text": text}).encode()


def test_messages_of_any_length(group: Group) -> None:
    """The room is 64 bytes; a longer message takes a second exchange, and only a usual one gets room for later."""
    assert group.exchange(b"a" * 59) == [b"a" * 59] and (group.exchanges, group.sent_bytes) == (1, 64)
    assert group.exchange(b"b" * 200) == [b"b" * 200] and (group.exchanges, group.message_bytes) == (3, 64)
    assert group.exchange(b"c" * 100, usual=True) == [b"c" * 100] and (group.exchanges, group.message_bytes) == (5, 105)
    assert group.exchange(b"d" * 100) == [b"d" * 100] and group.exchanges == 6
    assert group.exchange(b"", usual=True) == [b""] and group.message_bytes == 105
    assert group.share(bytes(range(256))) == bytes(range(256)) and group.share(b"") == b""


def test_an_error_here_is_raised_as_it_is(group: Group) -> None:
    """It is known to all from then on, so that nobody is told twice; a later exchange is fine again."""
    error = ConfigError("no such option. Remedy: another.")
    with pytest.raises(ConfigError) as caught:
        group.exchange(b"", error)
    assert caught.value is error is group.heard and group.farewell(error) is error
    assert group.exchange(b"on") == [b"on"]


@pytest.mark.parametrize(
    ("frame", "kind", "said"),
    [
        (framed(FAILED, told("ConfigError", "no such option.")), ConfigError, "^process 1: no such option.$"),
        (framed(LEFT_OUT, told("NonFiniteLoss", "it is nan.")), NonFiniteLoss, "^process 1: it is nan.$"),
        (framed(FAILED, told("KeyError", "'x'\nmore.")), RunError, "^process 1 failed: KeyError: 'x'. Remedy: its own"),
        (framed(FAILED, told("ZeroDivisionError", " ")), RunError, "process 1 failed: ZeroDivisionError: ZeroDiv"),
        # A name of the module that is no error of a user must not be called.
        (framed(FAILED, told("annotations", "x")), RunError, "^process 1 failed: annotations: x. Remedy"),
        (framed(STOPPED, told("Terminated", "")), Terminated, "^$"),
        (framed(STOPPED, told("KeyboardInterrupt", "")), KeyboardInterrupt, "^$"),
    ],
    ids=["a user's", "left out", "a bug", "a bug without words", "no class", "SIGTERM", "Ctrl-C"],
)
def test_an_error_elsewhere_is_raised_here(
    group: Group, monkeypatch: pytest.MonkeyPatch, frame: bytes, kind: type[BaseException], said: str
) -> None:
    """Of the same class where that is one of zotune's, with the process that had it."""
    monkeypatch.setattr(group, "_all", joined_by(frame))
    with pytest.raises(kind, match=said) as caught:
        group.exchange(b"mine")
    assert group.heard is caught.value and type(caught.value) is kind


def test_of_several_failures_the_worst_is_raised(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop before an error before a step that is left out; of equals the first process speaks."""
    others = [framed(FAILED, told("ConfigError", "one.")), framed(STOPPED, told("Terminated", ""))]
    monkeypatch.setattr(group, "_all", joined_by(*others))
    with pytest.raises(Terminated):
        group.exchange(b"", NonFiniteLoss("nan."))
    monkeypatch.setattr(group, "_all", joined_by(framed(LEFT_OUT, told("NonFiniteLoss", "nan there."))))
    own = NonFiniteLoss("nan here.")
    with pytest.raises(NonFiniteLoss) as caught:
        group.exchange(b"", own)
    assert caught.value is own
    # What a process says that lost another one's weights is the other one's error.
    monkeypatch.setattr(group, "_all", joined_by(framed(FAILED, told("ConfigError", "there."))))
    ended = group.farewell(RuntimeError("[gloo] connection closed by peer"))
    assert isinstance(ended, ConfigError) and str(ended) == "process 1: there."
    bug = RuntimeError("a bug of its own")
    assert group.farewell(bug) is bug


def test_signals_wait_for_the_end_of_a_step(group: Group) -> None:
    """A first one is kept, a second one acts at once; afterwards the handlers are those of before."""
    numbers, acted = (signal.SIGTERM, signal.SIGINT), list[int]()
    before = [signal.signal(number, lambda number, frame: acted.append(number)) for number in numbers]
    handlers = [signal.getsignal(number) for number in numbers]
    try:
        with group.stopping_together():
            for number, kind in zip(numbers, (Terminated, KeyboardInterrupt), strict=True):
                signal.raise_signal(number)
                assert isinstance(group.stop, kind) and number not in acted
                signal.raise_signal(number)
                assert acted[-1] == number
        assert [signal.getsignal(number) for number in numbers] == handlers
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as under nohup: ignored all the same
        with group.stopping_together():
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def test_an_exchange_is_given_up_after_a_while(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process whose error nobody comes for ends with that error, and not with a wait."""

    class Never:
        def is_completed(self) -> bool:
            return False

    def waiting(own: bytes, room: int) -> Any:
        group._wait(Never())

    monkeypatch.setattr("zotune.distributed.group.PATIENCE", 0.01)
    monkeypatch.setattr(group, "_all", waiting)
    error = ConfigError("mine.")
    with pytest.raises(ConfigError) as caught:
        group.exchange_soon(error)
    assert caught.value is error
