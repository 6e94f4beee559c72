"""What a template may cost: its steps are counted while it is rendered, and it ends when they are used up.

Counting is portable and gives the same answer on every machine, which a clock does not.
"""

from __future__ import annotations

from typing import final

from jinja2.exceptions import SecurityError

BASE = 2**18  # steps that a template may take whatever it is given: some tenths of a second
PER_CHARACTER = 64  # and further ones for each character or item of what it is given


@final
class Budget:
    """A count of steps: a node of a loop's body each time it runs, a character or item that something reads or writes.

    Before the first `allow` nothing may be spent: Jinja then leaves constant expressions to the rendering.
    """

    def __init__(self) -> None:
        self._left = 0

    def allow(self, size: int) -> None:
        """Begin a rendering of something with so many characters and items."""
        self._left = BASE + PER_CHARACTER * size

    def spend(self, steps: int) -> None:
        """Raises SecurityError when no more steps are left."""
        self._left -= steps
        if self._left < 0:
            raise SecurityError("it takes too many steps for what it is given")
