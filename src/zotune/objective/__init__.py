"""What is minimised: per-example losses of a model on a batch."""

from __future__ import annotations
