"""What fails in one process is kept until all of them meet."""

from __future__ import annotations

from typing import Any, cast

import pytest

from zotune.distributed.group import Group
from zotune.distributed.in_group import InGroup
from zotune.distributed.own import OwnBatches
from zotune.distributed.parallel import Parallel
from zotune.errors import ConfigError

GROUP = cast(Group, object())  # not asked for anything here


@pytest.mark.parametrize(
    "make", [lambda **given: OwnBatches(GROUP, **given), lambda **given: Parallel("data", GROUP, **given)]
)
def test_the_first_error_is_kept_but_a_signal_before_any(make: Any) -> None:
    """Nothing is raised within the estimate; a new step begins without what an earlier one kept."""
    shared: InGroup = make()
    first, second, signal = ValueError("first"), ValueError("second"), KeyboardInterrupt()
    for error, kept in ((first, first), (second, first), (signal, signal), (second, signal)):
        with shared.deferring():
            raise error
        assert shared._failed is kept
    shared.examples, shared.units = 3, 2
    shared.forget()
    assert (shared._failed, shared.examples, shared.units) == (None, 0, 0)
    with pytest.raises(ConfigError, match="check_every must be at least 1, got 0. Remedy"):
        make(check_every=0)
