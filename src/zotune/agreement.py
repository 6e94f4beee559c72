"""When two ways to evaluate the same points are taken to agree: the proofs of a run's first batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from zotune.lazy import LaneUnsupported
from zotune.perturb import Perturber


def widest_rounding(perturber: Perturber) -> torch.dtype:
    """The dtype in scope that rounds most."""
    return max({target.data.dtype for target in perturber.targets()}, key=lambda dtype: torch.finfo(dtype).eps)


def compare(together: Tensor, alone: Tensor, dtype: torch.dtype) -> None:
    """Raises LaneUnsupported unless losses in lanes (points, examples) equal those of single evaluations."""
    off = disagreement(together, alone, dtype)
    if off == math.inf:
        raise LaneUnsupported("lanes and single evaluations differ in which losses are finite")
    if off:
        raise LaneUnsupported(f"lanes differ from single evaluations by {off:.3g} on the first batch")


def disagreement(found: Tensor, expected: Tensor, dtype: torch.dtype) -> float:
    """0, or by how much losses (points, examples) are off; inf where others are finite.

    An evaluation at wrong weights is off by what separates the points; a right one by rounding in `dtype`.
    """
    if not torch.equal(found.isfinite(), expected.isfinite()):
        return math.inf
    fine = found.isfinite()
    error = (found - expected)[fine].abs()
    spread = (expected - expected.mean(0)).abs().masked_fill(~fine, 0).amax()
    rounding = 64 * torch.finfo(dtype).eps * (1 + expected[fine].abs())
    return float(error.max()) if bool((error > torch.maximum(rounding, 0.02 * spread)).any()) else 0.0
