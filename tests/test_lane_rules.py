"""The rules of operations: each equals the operation on explicit weights, lane by lane, or refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests import lanes, models
from tests.lanes import LANES, POINTS, ROWS, explicit, ids, x
from tests.models import Called, normals, seeded, train
from torch import Tensor, nn

from zotune.estimate import Point
from zotune.lazy import LaneTensor, LaneUnsupported
from zotune.noise import Key
from zotune.perturb import Perturber

one_thread, perturber = models.one_thread, lanes.perturber


OPERATIONS: dict[str, Callable[[Any], Any]] = {
    "linear": lambda m: F.linear(x(7, 4), m.matrix, m.bias),
    "linear without bias": lambda m: F.linear(x(4), m.matrix),
    "linear by keyword": lambda m: F.linear(input=x(7, 4), weight=m.matrix, bias=m.bias),
    "linear on a transposed input": lambda m: F.linear(x(4, 7).transpose(1, 2), m.matrix),
    "linear with a cast weight": lambda m: F.linear(x(7, 4).float(), m.matrix.to(torch.float32)),
    "linear with one plus the weight": lambda m: F.linear(x(7, 4), 1.0 + m.matrix),
    "matmul": lambda m: x(7, 4) @ m.square,
    "matmul function": lambda m: torch.matmul(x(7, 4), m.square),
    "matmul of two dimensions": lambda m: torch.mm(x(4), m.square),
    "matmul with a transposed weight": lambda m: x(7, 4) @ m.matrix.t(),
    "matmul with a vector": lambda m: x(7, 4) @ m.vector,
    "addmm": lambda m: torch.addmm(m.vector, x(4), m.square),
    "addmm with a plain bias": lambda m: torch.addmm(torch.ones(4, dtype=torch.float64), x(4), m.square),
    "embedding": lambda m: F.embedding(ids(), m.table),
    "embedding of a cast table": lambda m: F.embedding(ids(), m.table.float()),
    "embedding with padding": lambda m: F.embedding(ids(), m.table, 0),
    "positions of one row": lambda m: x(7, 4) + F.embedding(torch.arange(7)[None], m.table),
    "positions without a row": lambda m: x(7, 4) + F.embedding(torch.arange(7), m.table),
    "layer norm": lambda m: F.layer_norm(x(7, 4), (4,), m.vector, m.vector, 1e-5),
    "layer norm by keyword": lambda m: F.layer_norm(input=x(7, 4), normalized_shape=(4,), weight=m.vector),
    "rms norm": lambda m: F.rms_norm(x(7, 4), (4,), m.vector),
    "scaling": lambda m: m.vector * x(7, 4),
    "gemma's norm": lambda m: x(7, 4) * (1.0 + m.vector.to(torch.float64)),
    "sum and difference": lambda m: x(7, 4) - m.vector + m.row,
    "division": lambda m: x(7, 4) / m.vector,
    "in place": lambda m: x(7, 4).add_(m.vector).mul_(m.row),
    "augmented": lambda m: _augmented(m),
    "where": lambda m: torch.where(x(7, 4) > 0, x(7, 4), m.vector),
    "scalar": lambda m: x(7, 4) * m.scalar,
    "convolution": lambda m: F.conv1d(x(4, 9), m.filter),
    "attention bias": lambda m: F.scaled_dot_product_attention(*[x(4, 7, 8)] * 3, attn_mask=m.heads[0][None]),
    "virtual tokens": lambda m: torch.cat((m.row.repeat(ROWS * LANES, 1, 1), x(3, 4)), dim=1),
    "virtual tokens behind": lambda m: torch.cat((x(3, 4), m.row.repeat(ROWS * LANES, 1, 1)), -2),
    "shape queries": lambda m: x(7, 4) * m.vector * (m.matrix.size(0) + m.matrix.shape[1] + m.vector.numel()),
}


# What several lanes cannot do at once: each must refuse, and one lane at a time must give the right result.
ALONE: dict[str, Callable[[Any], Any]] = {
    "no rule": lambda m: torch.einsum("bti,oi->bto", x(7, 4), m.matrix),
    "weight as input": lambda m: F.linear(m.row, torch.ones(3, 4, dtype=torch.float64)),
    "weight as query": lambda m: F.scaled_dot_product_attention(m.heads, *[x(4, 7, 7, rows=2)] * 2),
    "joined along the examples": lambda m: torch.cat((m.row, x(7, 4))),
    "joined with one row of many": lambda m: torch.cat((m.row, x(3, 4)[:1]), 1),
    "weight on the left": lambda m: m.matrix @ x(7, rows=4),
    "norm of a weight": lambda m: F.layer_norm(m.square, (4,), torch.ones(4, dtype=torch.float64)),
    "not stacked": lambda m: F.linear(x(4, rows=5), m.matrix),
    "into a shared tensor": lambda m: torch.zeros(1, 7, 4, dtype=torch.float64).add_(m.row),
    "unclear dimension": lambda m: torch.ones(2, 4, 7, 7, dtype=torch.float64) * m.heads,
    "a number per lane": lambda m: x(7, 4) * float(m.scalar),
    "matmul by keyword": lambda m: torch.matmul(input=x(7, 4), other=m.square),
}


def _augmented(m: Any) -> Tensor:
    y = x(7, 4)
    y += m.vector
    y *= m.vector
    y -= m.row
    return y


@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_lane_of_an_operation_is_the_operation_on_that_lanes_weights(perturber: Perturber, operation: str) -> None:
    """Four lanes of two keys in one call: lane l of the result is what explicit weights at point l give, to 1e-12."""
    call = OPERATIONS[operation]
    with torch.no_grad():
        with perturber.at(*POINTS, rows=ROWS):
            found = call(perturber.model)
        assert isinstance(found, Tensor) and not isinstance(found, LaneTensor)
        for lane, (part, point) in enumerate(zip(found.chunk(LANES), POINTS, strict=True)):
            expected = call(explicit(perturber, point)).chunk(LANES)[lane]
            tolerance = 1e-5 if found.dtype == torch.float32 else 1e-12
            torch.testing.assert_close(part, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("operation", [*OPERATIONS, *ALONE])
def test_one_lane_is_right_for_every_operation(perturber: Perturber, operation: str) -> None:
    """With one point the weight is made, then used: no operation is refused, not even those without a lane rule."""
    call = {**OPERATIONS, **ALONE}[operation]
    with torch.no_grad():
        for point in POINTS[:2]:
            with perturber.at(point, rows=ROWS * LANES) as seen:
                found = call(perturber.model)
            assert seen.touched
            expected = call(explicit(perturber, point))
            tolerance = 1e-5 if found.dtype == torch.float32 else 1e-12
            torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("operation", ALONE)
def test_lanes_refuse_what_has_no_rule(perturber: Perturber, operation: str) -> None:
    """An operation that could mix lanes up raises LaneUnsupported; it never returns something."""
    with torch.no_grad(), perturber.at(*POINTS, rows=ROWS), pytest.raises(LaneUnsupported) as caught:
        ALONE[operation](perturber.model)
    assert str(caught.value)


@pytest.mark.parametrize("method", models.METHOD_ROWS)
@pytest.mark.parametrize("bias", [True, False])
def test_large_matrices_are_perturbed_a_block_of_rows_at_a_time(
    method: str, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a small block size the result equals the whole, and no scratch is larger than a few aligned rows."""
    from zotune import lane_products

    layer = seeded(lambda: nn.Linear(33, 301, bias=bias)).double()
    layer.weight.data.copy_(normals((301, 33), 1, torch.float64))
    optimizer = train(method, layer)
    data = x(33)
    with torch.no_grad():
        with optimizer.perturber.at(*POINTS, rows=ROWS):
            whole = layer(data)
        monkeypatch.setattr(lane_products, "BLOCK", 128 * 33)
        sizes: list[int] = []
        inner = optimizer.direction.add
        monkeypatch.setattr(
            optimizer.direction,
            "add",
            lambda t, k, s, w, scales: sizes.append(w.numel()) or inner(t, k, s, w, scales),  # type: ignore[func-returns-value]
        )
        with optimizer.perturber.at(*POINTS, rows=ROWS):
            cut = layer(data)
    torch.testing.assert_close(cut, whole, rtol=0, atol=1e-13)
    assert max(sizes, default=0) <= 128 * 33


def test_a_slice_of_an_activation_is_one_product(perturber: Perturber) -> None:
    """Row by row it would read, and in 16 bits copy, the weight for every row: the output head at the last tokens."""
    hidden = x(7, 4)
    with perturber.at(*POINTS), Called() as called:
        sliced = F.linear(hidden[:, -3:], perturber.model.get_parameter("matrix"))
    assert not called.names & {"bmm", "baddbmm"} and called.names & {"mm", "addmm"}
    with perturber.at(*POINTS):
        assert torch.equal(sliced, F.linear(hidden[:, -3:].contiguous(), perturber.model.get_parameter("matrix")))


GAINS: dict[str, Callable[[Any, Tensor], Any]] = {
    "scaling": lambda m, h: m.vector * h,
    "sum and difference": lambda m, h: h - m.vector + m.bias,
    "division": lambda m, h: h / m.vector,
    "in place": lambda m, h: h.clone().mul_(m.vector),
    "gemma's norm": lambda m, h: h * (1.0 + m.vector),
    "gemma's norm in float32": lambda m, h: (h.float() * (1.0 + m.vector.float())).type_as(h),
    "a view": lambda m, h: h * m.vector.view(1, 1, -1).to(h.dtype),
    "layer norm": lambda m, h: F.layer_norm(h, (16,), m.vector, m.bias, 1e-5),
    "layer norm without bias": lambda m, h: F.layer_norm(h, (16,), weight=m.vector),
    "layer norm with a plain bias": lambda m, h: F.layer_norm(h, (16,), m.vector, torch.ones_like(h[0, 0])),
    "rms norm": lambda m, h: F.rms_norm(h, (16,), m.vector),
    "a bias": lambda m, h: F.linear(h, torch.eye(16, dtype=h.dtype), m.vector),
    "biases of matrices in scope": lambda m, h: F.linear(h, m.square, m.vector),
    "addmm": lambda m, h: torch.addmm(m.vector, h.flatten(0, 1), m.square).view(h.shape),
}


class Gains(nn.Module):
    """Two vectors near 1.5, and a matrix, in 16 bits."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.vector = nn.Parameter((1.5 + 0.1 * normals(16, 4)).to(dtype))
        self.bias = nn.Parameter((1.5 + 0.1 * normals(16, 5)).to(dtype))
        self.square = nn.Parameter((0.3 * normals((16, 16), 6)).to(dtype))


@pytest.mark.parametrize("operation", GAINS)
@pytest.mark.parametrize("kind", ["dense", "lowrank"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("together", [True, False])
def test_vectors_in_16_bits_feel_a_small_radius(operation: str, kind: str, dtype: torch.dtype, together: bool) -> None:
    """Numbers near 1.5 lie 2**-7 apart in bfloat16, z by 1e-3 is lost between them: yet what the operation gives moves
    along z as that on exact numbers does, on average over its elements, with the dtype that the model expects.
    """
    model, call, scale = Gains(dtype), GAINS[operation], 1e-3
    perturber = Perturber(model, ["vector", "bias"], lanes.DIRECTIONS[kind]())
    perturber.direction.prepare(perturber.targets())
    hidden = normals((6, 700, 16), 8).to(dtype)
    points = [Point(Key(0, 0), side * scale) for side in (1, -1)]
    with torch.no_grad():
        if together:
            with perturber.at(*points, rows=6):
                up, down = call(model, hidden.repeat(2, 1, 1)).chunk(2)
        else:
            found = []
            for point in points:
                with perturber.at(point, rows=6):
                    found.append(call(model, hidden))
            up, down = found
        exact = []
        for point in points:
            copy = Gains(dtype).double()
            for target in perturber.targets():
                z = perturber.direction.block(target, point.key, 0, 16).double()
                getattr(copy, target.name).data.add_(point.scale * z)
            exact.append(call(copy, hidden.double()))
    assert up.dtype == down.dtype == dtype
    moved, expected = (up.double() - down.double()), exact[0] - exact[1]
    # Behind a bias alone 16-bit activations take few values between two neighbours of the sum: stairs remain.
    tolerance = 0.5 if operation in ("a bias", "biases of matrices in scope", "addmm") else 0.1
    assert float((moved * expected).sum() / expected.square().sum()) == pytest.approx(1.0, abs=tolerance)
