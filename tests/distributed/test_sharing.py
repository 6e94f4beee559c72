"""What an optimizer asks of those who share a step: the defaults, and a step that is shared with nobody."""

from __future__ import annotations

import pytest
import torch
from tests import models
from tests.models import batch_for, loss, same_bits, tiny, train, weights
from tests.sharings import Alone

from zotune.distributed.sharing import Sharing

one_thread = models.one_thread


def test_shared_with_nobody_is_a_run_alone() -> None:
    """Three steps of two micro-batches: losses and weights to the bit, whoever collects; each step is gathered once."""
    ends, means = [], []
    sharing = Alone()
    for parallel in (None, sharing):
        optimizer = train("mezo", tiny("llama"), lr=0.1, queries=2, parallel=parallel)
        for step in range(3):
            for unit in range(2):
                optimizer.estimate(loss, batch_for("llama", seed=2 * step + unit))
            means.append(optimizer.step())
        ends.append(weights(optimizer.model))
    assert sharing.gathered == [0, 1, 2]
    assert means[:3] == means[3:] and same_bits(ends[0], ends[1])


def test_a_failure_is_kept_for_the_step_only_where_it_is_asked_for() -> None:
    """By default what fails in an estimate is raised there."""
    optimizer = train("mezo", tiny("llama"), parallel=Alone())
    with pytest.raises(ZeroDivisionError):
        optimizer.estimate(lambda model, batch: torch.ones(1) * (1 // 0), batch_for("llama"))


def test_defaults() -> None:
    """Any work can be shared, lanes are what was asked for, every micro-batch is evaluated here; the rest is open."""
    sharing = Alone()
    sharing.check_work(1, 1, 1)
    assert [sharing.lanes(asked) for asked in ("auto", "on", "off")] == ["auto", "on", "off"]
    assert sharing.elsewhere(rows=4, points=2) is False and (sharing.examples, sharing.units) == (0, 0)
    assert Sharing.__abstractmethods__ == {"deal", "keep", "gather"}
