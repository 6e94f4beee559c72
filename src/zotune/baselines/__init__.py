"""What a trained run is compared with: the same model on the same rows, without zeroth-order training."""

from zotune.baselines.first_order import first_order
from zotune.baselines.in_context import in_context
from zotune.baselines.linear_probe import linear_probe

__all__ = ["first_order", "in_context", "linear_probe"]
