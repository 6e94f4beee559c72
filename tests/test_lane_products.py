"""Products with weights that differ in signs: equal to those with weights that are made, in every layout."""

from __future__ import annotations

from typing import Any, final

import pytest
import torch
import torch.nn.functional as F
from tests import models
from tests.models import normals
from torch import Tensor, nn

from zotune import lane_products
from zotune.direction import Dense, Direction, Factors, Signed, Target
from zotune.estimate import Point
from zotune.factored import add_up
from zotune.low_rank import LowRank
from zotune.noise import Key, noise
from zotune.perturb import Perturber

one_thread = models.one_thread
SHAPES = {"matrix": (6, 4), "turned": (4, 6), "table": (11, 4), "vector": (6,)}
# Both sides of three queries, each a lane of two examples; the last scale stands alone.
POINTS = [Point(Key(3, 1, query), scale) for scale in (0.5, -0.5) for query in range(3)] + [Point(Key(3, 1, 5), 0.125)]
ROWS = 2


@final
class Flips(Direction):
    """Signs around one U, written down plainly: what a method with a signed form looks like."""

    def __init__(self, base: Direction, right: bool) -> None:
        self.base, self.right = base, right

    def prepare(self, targets: Any) -> None:
        self.base.prepare(targets)

    def signed(self, target: Target, key: Key) -> Signed | None:
        if target.data.dim() < 2:
            return None
        rows, columns = target.matrix_shape
        signs = noise("rademacher", key, target.name + "?", 0, rows + columns)
        return Signed(self.base, Key(key.seed, key.step), signs[:rows], signs[rows:] if self.right else None)

    def block(self, target: Target, key: Key, start: int, stop: int) -> Tensor:
        one = self.signed(target, key)
        if one is None:
            return noise("rademacher", key, target.name, start, stop)
        u = one.base.block(target, one.key, 0, target.data.numel()).view(target.matrix_shape) * one.r.unsqueeze(1)
        return (u if one.s is None else u * one.s).flatten()[start:stop]


class Holder(nn.Module):
    """Parameters of a few shapes."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        for name, shape in SHAPES.items():
            self.register_parameter(name, nn.Parameter(normals(shape, len(name), dtype)))


CALLS: dict[str, Any] = {
    "linear": lambda m, x, ids: F.linear(x, m.matrix),
    "linear with a bias": lambda m, x, ids: F.linear(x, m.matrix, m.vector),
    "matmul": lambda m, x, ids: x @ m.turned,
    "addmm": lambda m, x, ids: torch.addmm(m.vector, x.reshape(-1, 4), m.turned),
    "embedding": lambda m, x, ids: F.embedding(ids, m.table),
}
calls = pytest.mark.parametrize("call", CALLS)


def made(base: str, right: bool, dtype: torch.dtype = torch.float64) -> tuple[Holder, Perturber]:
    holder = Holder(dtype)
    direction = Flips(Dense("rademacher") if base == "dense" else LowRank(2, 3), right)
    perturber = Perturber(holder, list(SHAPES), direction)
    direction.prepare(perturber.targets())
    return holder, perturber


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    x = normals((len(POINTS) * ROWS, 3, 4), 1, dtype)
    ids = torch.randint(0, 11, (ROWS, 3), generator=torch.Generator().manual_seed(1)).repeat(len(POINTS), 1)
    return x, ids


def lane_by_lane(call: Any, holder: Holder, perturber: Perturber, x: Tensor, ids: Tensor) -> Tensor:
    parts = []
    for lane, point in enumerate(POINTS):
        rows = slice(lane * ROWS, (lane + 1) * ROWS)
        with perturber.at(point):
            parts.append(call(holder, x[rows], ids[rows]))
    return torch.cat(parts)


@calls
@pytest.mark.parametrize("base", ["dense", "low rank"])
@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("pending", [True, False])
def test_lanes_equal_weights_that_are_made(
    call: str, base: str, right: bool, pending: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each lane's result is that of its own explicit weight, blocks of rows and pending updates included; 1e-13."""
    holder, perturber = made(base, right)
    if pending:
        for target in perturber.targets():
            if target.data.dim() == 2:
                (rows, columns), terms = target.matrix_shape, []
                for seed in range(2):
                    u = normals((rows, 2), seed, torch.float64)
                    terms.append((Factors(u, normals((columns, 2), 9, torch.float64), 0.7), 0.3))
                perturber.pending[target.name] = add_up(terms)
    monkeypatch.setattr(lane_products, "BLOCK", 4)
    x, ids = inputs()
    with torch.no_grad():
        expected = lane_by_lane(CALLS[call], holder, perturber, x, ids)
        with perturber.at(*POINTS, rows=ROWS):
            found = CALLS[call](holder, x, ids)
        unmoved = CALLS[call](holder, x, ids)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    assert float((found - unmoved).abs().min()) > 1e-9 or call == "embedding"


@calls
def test_nothing_is_made_for_a_lane(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrices are never perturbed: `add` is asked for the bias alone."""
    holder, perturber = made("dense", True)
    asked: list[str] = []
    inner = perturber.direction.add
    monkeypatch.setattr(perturber.direction, "add", lambda t, *rest: asked.append(t.name) or inner(t, *rest))  # type: ignore[func-returns-value]
    with torch.no_grad(), perturber.at(*POINTS, rows=ROWS):
        CALLS[call](holder, *inputs())
    assert set(asked) <= {"vector"}


def test_the_radius_is_not_rounded_to_16_bits() -> None:
    """In bfloat16 a scale of 1.0035 would be 1.0; over many numbers its mean effect is within 1e-3 of itself."""
    holder, perturber = made("dense", True, torch.bfloat16)
    holder.matrix.data.zero_()
    x, scale = normals((4000, 4), 1, torch.bfloat16), 1.0035
    with torch.no_grad():
        with perturber.at(*[Point(Key(3, 1, query), scale) for query in range(2)], rows=2000):
            found = F.linear(x, holder.matrix).float()
        with perturber.at(*[Point(Key(3, 1, query), 1.0) for query in range(2)], rows=2000):
            plain = F.linear(x, holder.matrix).float()
    assert float((found * plain).sum() / (plain * plain).sum()) == pytest.approx(scale, abs=1e-3)


@pytest.mark.parametrize("method", ["mezo", "lozo", "eggroll", "agzo", "subzero", "zo_muon"])
@pytest.mark.parametrize("lanes", ["auto", "off"])
def test_a_model_under_autocast(method: str, lanes: Any) -> None:
    """Activations with fewer bits than the weights and factors: the losses are those without, to bfloat16.

    `transformers`' Trainer evaluates so with `bf16=True`.
    """

    def autocast(model: nn.Module, batch: Any) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return models.loss(model, batch)

    batch, losses = models.batch_for("llama"), []
    for objective in (autocast, models.loss):
        optimizer = models.train(method, models.tiny("llama"), lr=1e-3, eps=0.1, lanes=lanes)
        losses.append(optimizer.estimate(objective, batch))
        for _ in range(2):  # with a change that waits to be folded
            optimizer.step()
            optimizer.estimate(objective, batch)
    assert losses[0] == pytest.approx(losses[1], rel=2e-2) and losses[0] != losses[1]


def test_a_direction_with_another_base_in_each_lane_is_made() -> None:
    """Keys of two steps share no U: the slow way is taken, and is right."""
    holder, perturber = made("dense", True)
    points = [Point(Key(3, step, 0), 0.5) for step in range(2)]
    x = normals((4, 4), 1, torch.float64)
    with torch.no_grad():
        expected = []
        for lane, point in enumerate(points):
            with perturber.at(point):
                expected.append(F.linear(x[2 * lane : 2 * lane + 2], holder.matrix))
        with perturber.at(*points, rows=2):
            found = F.linear(x, holder.matrix)
    torch.testing.assert_close(found, torch.cat(expected), rtol=0, atol=1e-13)
