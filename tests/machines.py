"""A slow machine, as if it had been measured."""

from __future__ import annotations

from zotune.calibrate import Machine

SLOW = {1: 1e9, 1000: 1e10}
MACHINE = Machine(1 << 20, 1 << 20, SLOW, SLOW, 1e-6, 1e-8, 1e-8)
