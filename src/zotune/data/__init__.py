"""Reading rows, rendering prompts, and the fixed partition of a data set into units."""

from __future__ import annotations
