"""Parameters of many shapes, four lanes of points, and activations and ids to put through them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.models import normals
from torch import Tensor, nn

from zotune.direction import Dense, Direction
from zotune.estimate import Point
from zotune.low_rank import LowRank
from zotune.methods.sparse_mezo import SmallWeights
from zotune.noise import Key
from zotune.perturb import Perturber

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


DIRECTIONS: dict[str, Callable[[], Direction]] = {
    "dense": Dense,
    "small": lambda: SmallWeights("gaussian", 0.5),
    "lowrank": lambda: LowRank(2, 3),
}


@pytest.fixture(params=DIRECTIONS)
def perturber(request: pytest.FixtureRequest) -> Perturber:
    """All parameters of a Holder in scope, for each kind of direction."""
    holder = Holder()
    made = Perturber(holder, list(SHAPES), DIRECTIONS[request.param]())
    made.direction.prepare(made.targets())
    return made


def explicit(perturber: Perturber, point: Point) -> Any:
    """The holder with every parameter written out at a point."""
    holder: Any = Holder()
    for target in perturber.targets():
        z = perturber.direction.block(target, point.key, 0, target.data.numel()).double()
        getattr(holder, target.name).data.copy_(target.data + point.scale * z.view(target.data.shape))
    return holder
