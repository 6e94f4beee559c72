"""Sharing among processes of a group, which wait for each other at the end of a step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from zotune.distributed.group import Group
from zotune.distributed.sharing import Sharing
from zotune.errors import ConfigError


class InGroup(Sharing):
    """What fails in an estimate is kept for `gather`, where the others wait. Abstract, as Sharing is.

    group: the processes; None is torch's default group. check_every: after the first and every so many steps, a slice
    of the weights is compared. Raises UserError where no process group is initialised.
    """

    def __init__(self, group: Group | None, check_every: int) -> None:
        if check_every < 1:
            raise ConfigError(f"check_every must be at least 1, got {check_every}. Remedy: 100 is the default.")
        self.group = Group() if group is None else group
        self.check_every, self._checks = check_every, 0
        self.forget()

    def forget(self) -> None:
        """Drop what was collected of a step."""
        self.examples = self.units = 0
        self._failed: BaseException | None = None

    @contextmanager
    def deferring(self) -> Iterator[None]:
        """What fails within is kept for `gather`, where the others wait: the first error, but a signal before any."""
        try:
            yield
        except BaseException as error:
            if self._failed is None or not isinstance(error, Exception):
                self._failed = error
