"""What every server does, whichever engine it is: records once, points in groups of its slots, one caller at a time."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import pytest

from zotune.engines.server import Answer, Order, Question, Server
from zotune.errors import RunError
from zotune.estimate import Point
from zotune.journal import Journal, read
from zotune.noise import Key
from zotune.records import StepRecord, encode

RECORDS = [StepRecord(step, (0.1,), (1.0, 2.0)) for step in range(3)]
ORDER = Order("m", "float32", False, b"{}", 4, 2, ("a",), slots=2, length=8, reply=4)
QUESTIONS = [Question((1, 2), (7,), False), Question((1, 3), (8,), True)]


@final
class Noted(Server):
    """Notes what it is asked; answers each question with slot and token."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Any] = []
        self.waiting = threading.Event()

    def _start(self, order: Order) -> None:
        self.calls.append("start")

    def _follow(self, records: bytes) -> None:
        self.calls.append(records)

    def _place(self, step: int | None, adapters: Sequence[tuple[int, int, float]]) -> None:
        self.calls.append((step, list(adapters)))

    def _answer(self, questions: Sequence[Question], slots: Sequence[int]) -> list[Answer]:
        return [Answer([], {each.follow[0]: float(slot)}) for each, slot in zip(questions, slots, strict=True)]

    def says(self) -> str:
        return "notes"

    def close(self) -> None:
        self.calls.append("close")


@pytest.fixture
def server() -> Noted:
    """One that has started, for two points at a time."""
    made = Noted()
    made.start(ORDER)
    made.calls.clear()
    return made


def test_points_are_scored_in_groups_of_the_slots(server: Noted) -> None:
    """Three points in two slots: two go first, each answer is that of its own point and question."""
    points = [Point(Key(0, 5, query), scale) for query, scale in ((0, 0.5), (0, -0.5), (1, 0.25))]
    found = server.score(5, points, QUESTIONS)
    assert server.calls == [(5, [(1, 0, 0.5), (2, 0, -0.5)]), (5, [(1, 1, 0.25)])]
    assert [[answer.follow for answer in each] for each in found] == [
        [{7: 1.0}, {8: 1.0}], [{7: 2.0}, {8: 2.0}], [{7: 1.0}, {8: 1.0}]
    ]  # fmt: skip


def test_the_workers_hear_each_record_once(server: Noted, tmp_path: Path) -> None:
    """Before the points that follow it, all that is new in one go; a journal tells of itself."""
    server.tell(RECORDS[0])
    server.tell(RECORDS[1])
    server.score(2, [], QUESTIONS)
    server.score(2, [], QUESTIONS)
    assert server.calls == [encode(RECORDS[0]) + encode(RECORDS[1])]
    other = Noted()
    other.start(ORDER)
    with Journal.create(tmp_path / "j.zoj", {}) as journal:
        journal.append(RECORDS[0])
    with Journal.append_to(tmp_path / "j.zoj") as journal:
        other.recording(journal).append(RECORDS[1])
    other.score(2, [], QUESTIONS)
    assert other.calls[1:] == server.calls and read(tmp_path / "j.zoj")[1] == RECORDS[:2]


def test_requests_are_served_with_all_that_is_known(server: Noted) -> None:
    """In the slot behind those of the points, at whatever step the workers are."""
    server.tell(RECORDS[0])
    with server.serving() as slot:
        assert slot == 3 and server.calls == [encode(RECORDS[0]), (None, [(3, 0, 0.0)])]


def test_a_request_of_another_thread_waits(server: Noted) -> None:
    """While a request is answered no step begins; in the same thread it may."""
    order: list[str] = []

    def step() -> None:
        server.score(0, [Point(Key(0, 0), 0.5)], QUESTIONS)
        order.append("step")

    thread = threading.Thread(target=step)
    with server.serving():
        thread.start()
        thread.join(0.05)
        assert thread.is_alive() and server.score(0, [], QUESTIONS) == []
        order.append("request")
    thread.join(5)
    assert order == ["request", "step"]


def test_it_serves_one_run_that_has_begun() -> None:
    """Before a run has started it there is nothing to serve, and it is started once; closing needs no start."""
    made = Noted()
    with pytest.raises(RunError, match="no run has started this server yet. Remedy: pass it to"), made.serving():
        pass
    made.start(ORDER)
    with pytest.raises(RunError, match="this server serves a run already. Remedy: a server for each run."):
        made.start(ORDER)
    made.close()
    assert made.calls == ["start", "close"]
