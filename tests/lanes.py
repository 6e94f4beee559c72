"""Parameters of many shapes, four lanes of points, and activations and ids to put through them."""

from __future__ import annotations

import torch
from tests.models import normals
from torch import Tensor, nn

from zotune.estimate import Point
from zotune.noise import Key

ROWS, LANES = 3, 4
POINTS = [Point(Key(0, 0, query), scale) for query in range(2) for scale in (0.5, -0.25)]


SHAPES = {
    "matrix": (5, 4),
    "square": (4, 4),
    "vector": (4,),
    "bias": (5,),
    "table": (11, 4),
    "filter": (6, 4, 3),
    "scalar": (),
    "row": (1, 7, 4),
    "heads": (2, 4, 7, 7),
}


class Holder(nn.Module):
    """Parameters of many shapes and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        for name, shape in SHAPES.items():
            self.register_parameter(name, nn.Parameter(normals(shape, len(name), torch.float64)))


def x(*shape: int, rows: int = ROWS * LANES) -> Tensor:
    return normals((rows, *shape), 77, torch.float64)


def ids(high: int = 11) -> Tensor:
    found = torch.randint(0, high, (ROWS, 7), generator=torch.Generator().manual_seed(1))
    return found.repeat(LANES, 1)
