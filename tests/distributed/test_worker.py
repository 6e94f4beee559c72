"""A worker by itself: its answers are bytes, and so are its errors."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from zotune.config import TrainConfig
from zotune.data.batching import units_of_step
from zotune.distributed.worker import Worker, content, losses_of, task_of
from zotune.errors import ConfigError, RunError
from zotune.records import HashRecord, StepRecord, encode
from zotune.session import Session

Config = Callable[..., TrainConfig]


def test_answers(config: Config) -> None:
    """It says who it is and what it runs; a task's losses are those of a session, after the records it is sent."""
    settings = config(micro_batch_size=4)
    worker = Worker(settings.to_yaml().encode(), False)
    told = json.loads(content(worker.join(), "worker"))
    assert told["pid"] > 0 and told["host"] and {"base_sha256", "train_sha256", "config"} <= told["run"].keys()
    session = Session(settings).begin()
    record = StepRecord(0, (1e-2,), (0.7, 0.6))
    session.replay(record)
    answer = content(worker.evaluate(encode(record), task_of(1, 1, 0, 2)), "worker")
    unit = units_of_step(len(session.units), session.units_per_step, settings.seed, 1)[1]
    points = session.optimizer.estimator.points(settings.seed, 1)
    expected = session.optimizer.evaluator.losses(session.objective, session.batch(session.units[unit]), points)
    assert losses_of(answer) == expected.tolist()


def test_errors(config: Config) -> None:
    """Errors keep their class; a step out of order, other weights and a config that cannot be are told."""
    worker = Worker(config().to_yaml().encode(), False)
    content(worker.join(), "worker")
    with pytest.raises(RunError, match="worker 4: asked for step 3 after 0 steps. Remedy"):
        content(worker.evaluate(b"", task_of(3, 0, 0, 2)), "worker 4")
    with pytest.raises(RunError, match="the weights after 0 steps are not those of the driver. Remedy"):
        content(worker.evaluate(encode(HashRecord(0, "00" * 32)), task_of(0, 0, 0, 2)), "worker 4")
    with pytest.raises(ConfigError, match="worker 4: .*unknown method"):
        content(Worker(config().to_yaml().replace("mezo", "mazo").encode(), False).join(), "worker 4")
