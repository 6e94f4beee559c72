"""What a task is: its sizes unless it says otherwise, and that it is not changed under a run."""

from __future__ import annotations

import dataclasses

import pytest

from zotune.tasks.base import Task


def test_defaults_are_the_sizes_of_the_experiments() -> None:
    """1000 rows to train on, 500 to choose by and 1000 to test on, accuracy of compared candidates, official splits."""
    task = Task(name="mine", hub="me/mine")
    assert (task.train_rows, task.dev_rows, task.test_rows) == (1000, 500, 1000)
    assert (task.train, task.test, task.loss, task.metric) == ("train", "validation", "options", "accuracy")
    assert (task.subset, task.revision, task.causal, task.masked, task.classes) == (None,) * 5
    assert (dict(task.limits), task.digest, task.untrained) == ({}, "", "")
    assert task.limits is not Task(name="other", hub="me/mine").limits


def test_a_task_is_named_in_full_and_does_not_change() -> None:
    """Positions mean nothing, a run's task stays what it was, and a name that is no part of one is an error."""
    task = Task(name="mine", hub="me/mine")
    with pytest.raises(TypeError):
        Task("mine", "me/mine")  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        task.dev_rows = 3  # type: ignore[misc]
    with pytest.raises((AttributeError, TypeError)):
        task.rows = 3  # type: ignore[attr-defined]
    assert dataclasses.replace(task, dev_rows=3).dev_rows == 3 and task.dev_rows == 500
