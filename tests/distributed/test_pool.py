"""A pool without Ray: workers of this process that come, go, fail and differ, and the bytes of a run alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zotune.config import TrainConfig
from zotune.distributed.pool import Crew, Pool
from zotune.distributed.worker import Worker
from zotune.errors import ConfigError, NonFiniteLoss, RunError
from zotune.train import resume, train
from zotune.watch import Quiet

Config = Callable[..., TrainConfig]
BUSY: dict[str, Any] = {"eval_every": 3, "snapshot_every": 2, "micro_batch_size": 3, "batch_size": 12}


class Here(Crew):
    """Workers in this process, one answer at a time, the latest call first. `lost`: the calls whose worker is gone."""

    def __init__(self, config: TrainConfig, lost: tuple[int, ...] = ()) -> None:
        self.config, self.lost = config.to_yaml().encode(), lost
        self.workers: dict[int, Worker] = {}
        self.calls: deque[tuple[int, Callable[[], bytes]]] = deque()
        self.answered, self.dismissed = 0, list[int]()

    def make(self, number: int) -> Worker:
        """The worker of a number."""
        return Worker(self.config, False)

    def hire(self, number: int) -> None:
        self.workers[number] = self.make(number)
        self.calls.appendleft((number, self.workers[number].join))  # a machine takes its time to come

    def evaluate(self, number: int, records: bytes, task: bytes) -> None:
        self.calls.append((number, lambda: self.workers[number].evaluate(records, task)))

    def wait(self, seconds: float) -> tuple[int, bytes | None] | None:
        if not self.calls:
            return None
        number, call = self.calls.pop()
        self.answered += 1
        return number, None if self.answered in self.lost else call()

    def dismiss(self, number: int) -> None:
        self.dismissed.append(number)

    def close(self) -> None:
        """Nothing runs."""


def bytes_of(run: Path) -> list[bytes]:
    """What two equal runs have in common."""
    return [(run / name).read_bytes() for name in ("journal.zoj", "metrics.jsonl")]


@pytest.mark.parametrize(
    "options",
    [
        {"queries": 3},
        {"method": "lozo", "dtype": "bfloat16", "method_args": {"interval": 3}},
        {"method": "grzo"},
        {"scope": "last:1", "lanes": "off"},
    ],
    ids=["mezo", "low rank", "by example", "reused"],
)
def test_a_pool_ends_with_the_bytes_of_one_process(config: Config, tmp_path: Path, options: dict[str, Any]) -> None:
    """Workers are lost in the first step and later, others join late: the journal and metrics of a run alone."""
    train(config(**BUSY, **options), Quiet())
    settings = config(output_dir=tmp_path / "pooled", **BUSY, **options)
    said = list[str]()
    crew = Here(settings, lost=(3, 12, 30))
    found = train(settings, Quiet(), pool=Pool(crew, 2, said.append))
    assert bytes_of(tmp_path / "pooled") == bytes_of(tmp_path / "run")
    assert found["workers_lost"] == 3 and found["workers_joined"] >= 3
    assert sum("is gone" in text for text in said) == 3 and any("records, which it replays" in text for text in said)


def test_a_worker_that_is_stuck(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One never answers from its third task on, and another's answer comes too late: others take their parts."""
    monkeypatch.setattr("zotune.distributed.pool._LEAST", 0.0)
    monkeypatch.setattr("zotune.distributed.pool._SLOW", 0.0)
    train(config(**BUSY, queries=3), Quiet())

    class Stuck(Here):
        tasks = 0

        def evaluate(self, number: int, records: bytes, task: bytes) -> None:
            self.tasks += number == 0
            if number or self.tasks < 3:
                super().evaluate(number, records, task)

        def wait(self, seconds: float) -> tuple[int, bytes | None] | None:
            heard = super().wait(seconds)
            if heard and heard[1] and self.answered == 9:  # later than anybody waited for it
                self.late = heard
                return None
            if self.answered == 20 and hasattr(self, "late"):
                self.calls.appendleft((self.late[0], lambda late=self.late[1]: late))
                del self.late
            return heard

    settings, said = config(output_dir=tmp_path / "pooled", **BUSY, queries=3), list[str]()
    found = train(settings, Quiet(), pool=Pool(Stuck(settings), 3, said.append))
    assert bytes_of(tmp_path / "pooled") == bytes_of(tmp_path / "run") and found["workers_lost"] == 0
    assert any("take long; other workers take them too" in text for text in said)


def test_a_pool_goes_on(config: Config, tmp_path: Path) -> None:
    """A run that one process began and that was stopped is continued by a pool; bytes are what they should be."""
    train(config(), Quiet())

    class Stop(Quiet):
        def step(self, step: int, *_: Any) -> None:  # type: ignore[override]
            if step == 4:
                raise KeyboardInterrupt

    settings = config(output_dir=tmp_path / "pooled")
    with pytest.raises(KeyboardInterrupt):
        train(settings, Stop())  # type: ignore[arg-type]
    pool = Pool(Here(settings), 1, lambda _: None)
    found = resume(settings.output_dir, Quiet(), pool=pool)
    assert bytes_of(tmp_path / "pooled") == bytes_of(tmp_path / "run")
    # Three steps of one cell: a task has 20 bytes, a record of 2 losses 34; the 22 rows' losses at 2 points come back.
    assert found["sent_bytes"] == 3 * 20 + 6 * 34 and pool.traffic.catching_up == 3 * 34
    assert found["received_bytes"] == 3 * (1 + 2 * 4) + 22 * 2 * 8
    assert "A step sent 54 bytes to the workers and 126 back; catching up took 102 bytes" in pool.says()


def test_workers_that_cannot_take_part(config: Config, tmp_path: Path) -> None:
    """Another model or other rows: that worker is left out; where there is no other one, the run says why."""
    settings = config(steps=2)
    other = config(seed=5)

    class Mixed(Here):
        def make(self, number: int) -> Worker:
            return Worker(other.to_yaml().encode(), False) if number == 0 else super().make(number)

    said = list[str]()
    crew = Mixed(settings)
    assert train(settings, Quiet(), pool=Pool(crew, 2, said.append))["workers_joined"] == 1
    assert crew.dismissed == [0] and "differs from the driver in seed of the run" in "".join(said)
    with pytest.raises(RunError, match="worker 0 on .* differs from the driver in seed of the run. Remedy"):
        alone = config(steps=2, output_dir=tmp_path / "alone")
        train(alone, Quiet(), pool=Pool(Mixed(alone), 1, said.append))


def test_workers_that_are_lost_again_and_again(config: Config) -> None:
    """A pool that never answers ends; nothing is lost."""
    settings = config(steps=2)
    with pytest.raises(RunError, match="7 workers were lost without an answer. Remedy: look at the logs"):
        train(settings, Quiet(), pool=Pool(Here(settings, lost=tuple(range(1, 99))), 2, lambda _: None))


def test_what_fails_in_a_worker(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses that are not finite are left out or stop the run, errors keep their class, bugs their name."""
    from zotune.optimizer import ZerothOrder

    evaluating = ZerothOrder._estimate

    def third_is_bad(optimizer: ZerothOrder, objective: Any, *given: Any) -> Any:
        bad = optimizer.steps == 3 and optimizer.parallel is not None and optimizer.parallel.mode == "pool"
        return evaluating(optimizer, (lambda *args: objective(*args) * float("nan")) if bad else objective, *given)

    monkeypatch.setattr(ZerothOrder, "_estimate", third_is_bad)
    settings = config(on_nonfinite="skip", **BUSY)
    assert train(settings, Quiet(), pool=Pool(Here(settings), 2, lambda _: None))["steps"] == 7
    settings = config(output_dir=tmp_path / "stopped", **BUSY)
    with pytest.raises(NonFiniteLoss, match=r"worker \d: the loss is nan at step 3"):
        train(settings, Quiet(), pool=Pool(Here(settings), 2, lambda _: None))

    def bug(*_: Any) -> Any:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(ZerothOrder, "_estimate", bug)
    settings = config(output_dir=tmp_path / "bug")
    with pytest.raises(RunError, match="worker 0 failed: ZeroDivisionError: a bug. Remedy: its machine's logs"):
        train(settings, Quiet(), pool=Pool(Here(settings), 1, lambda _: None))


def test_methods_that_read_inputs_are_refused(config: Config) -> None:
    """Records alone cannot tell a worker such a method's directions."""
    settings = config(method="agzo")
    with pytest.raises(ConfigError, match="agzo reads the layers' inputs, so records alone cannot tell .* Remedy"):
        train(settings, Quiet(), pool=Pool(Here(settings), 1, lambda _: None))
