"""Directions that are low rank on some tensors: one law, however it is asked for."""

from __future__ import annotations

from typing import final

import pytest
import torch
from tests.models import normals
from torch import Tensor

from zotune.direction import Factors, Target
from zotune.factored import OrDense, add_up, add_up_all, orthonormal, side_by_side
from zotune.noise import Key, noise


@final
class Half(OrDense):
    """Low rank on the tensor called low, with one right factor for all queries or one for each."""

    def __init__(self, shared: bool) -> None:
        super().__init__("gaussian", 2)
        self.v = normals((7, 2), 3)
        self.shared = shared

    def factors(self, target: Target, key: Key) -> Factors | None:
        if target.name != "low":
            return None
        v = self.v if self.shared else self.v * (key.query + 1)
        return Factors(self.left(target, key), v, 0.5)


LOW, HIGH, VECTOR = Target("low", normals((6, 7), 1)), Target("high", normals((3, 4), 2)), Target("v", normals(5, 4))


def half(shared: bool = True) -> Half:
    direction = Half(shared)
    direction.prepare([LOW, HIGH, VECTOR])
    return direction


def z_of(direction: Half, query: int) -> Tensor:
    u = noise("gaussian", Key(1, 2, query), "low", 0, 12).view(6, 2)
    return 0.5 * u @ (direction.v if direction.shared else direction.v * (query + 1)).T


def test_blocks_rows_and_sums_are_one_direction() -> None:
    """Any slice, rows in any order and sums equal the product of the factors; whole rows or not."""
    direction, key = half(), Key(1, 2)
    z = z_of(direction, 0)
    for start, stop in ((0, 42), (7, 21), (3, 40), (10, 12)):
        torch.testing.assert_close(direction.block(LOW, key, start, stop), z.flatten()[start:stop])
        weight = LOW.data.flatten()[start:stop]
        plus, minus = direction.add(LOW, key, start, weight, [0.1, -0.1])
        torch.testing.assert_close(plus, weight + 0.1 * z.flatten()[start:stop])
        torch.testing.assert_close(minus, weight - 0.1 * z.flatten()[start:stop])
    torch.testing.assert_close(direction.rows(LOW, key, torch.tensor([4, 0])), z[[4, 0]])


def test_what_has_no_factors_is_dense() -> None:
    """The stream's own noise for other matrices and for vectors."""
    direction, key = half(), Key(1, 2)
    for target in (HIGH, VECTOR):
        size = target.data.numel()
        own = noise("gaussian", key, target.name, 0, size)
        assert torch.equal(direction.block(target, key, 0, size), own)
        assert torch.equal(direction.add(target, key, 0, target.data.flatten(), [1.0])[0], target.data.flatten() + own)
        assert direction.combined(target, [(key, 1.0)]) is None
    assert torch.equal(direction.rows(HIGH, key, torch.tensor([2])), noise("gaussian", key, "high", 8, 12).view(1, 4))


@pytest.mark.parametrize("shared", [True, False])
def test_several_queries_combine(shared: bool) -> None:
    """`sum of scale z` as one product: of the one rank where the right factor is shared, else of all together."""
    direction = half(shared)
    found = direction.combined(LOW, [(Key(1, 2, 0), 0.3), (Key(1, 2, 1), -2.0)])
    assert found is not None and found.v.shape[1] == (2 if shared else 4)
    expected = 0.3 * z_of(direction, 0) - 2.0 * z_of(direction, 1)
    torch.testing.assert_close(found.scale * found.u @ found.v.T, expected)


@pytest.mark.parametrize(("rows", "columns"), [(9, 4), (5, 5), (3, 1)])
def test_orthonormal_is_unique(rows: int, columns: int) -> None:
    """Orthonormal columns, the same span column by column, and the sign that keeps each column's own part positive."""
    y = normals((rows, columns), 7, torch.float64)
    q = orthonormal(y)
    torch.testing.assert_close(q.T @ q, torch.eye(columns, dtype=torch.float64), rtol=0, atol=1e-14)
    r = q.T @ y
    torch.testing.assert_close(r, r.triu(), rtol=0, atol=1e-13)
    assert bool((r.diagonal() > 0).all())
    torch.testing.assert_close(
        orthonormal(y @ torch.diag(torch.arange(1, columns + 1).double())), q, rtol=0, atol=1e-13
    )
    assert bool(orthonormal(torch.zeros(rows, columns, dtype=torch.float64)).isfinite().all())


def test_terms_with_a_basis_each_stand_side_by_side() -> None:
    """`sum of scale * unit u v'` as one product, in float64 for float64 factors, else in float32."""
    for dtype, wide in ((torch.float64, torch.float64), (torch.bfloat16, torch.float32)):
        pairs = [(normals((7, 2), 2 * i, dtype), normals((5, 2), 2 * i + 1, dtype)) for i in range(3)]
        terms = [(Factors(u, v, 0.5), scale) for (u, v), scale in zip(pairs, (2.0, -3.0, 0.25), strict=True)]
        found = side_by_side(terms)
        assert found.u.shape == (7, 6) and found.v.shape == (5, 6) and found.u.dtype == wide
        expected = sum(scale * f.scale * f.u.double() @ f.v.double().T for f, scale in terms)
        torch.testing.assert_close(found.u.double() @ found.v.double().T, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_many_sums_at_once_are_each_sum(dtype: torch.dtype) -> None:
    """Bit for bit, whatever the shapes and the number of terms, signs of zeros included; v is the first's."""
    generator = torch.Generator().manual_seed(1)

    def factors(rows: int, unit: float) -> Factors:
        u = torch.randn(rows, 2, generator=generator).to(dtype)
        u[0] = -0.0
        return Factors(u, torch.randn(3, 2, generator=generator).to(dtype), unit, 4)

    for counts in ([2, 2, 2], [1, 3, 2], []):
        sums = [
            [(factors(5 + index, 0.7), 0.1 * (1 + term)) for term in range(count)] for index, count in enumerate(counts)
        ]
        for found, terms in zip(add_up_all(sums), sums, strict=True):
            expected = add_up(terms)
            assert (
                torch.equal(found.u.view(torch.uint8), expected.u.view(torch.uint8))
                and found.u.dtype == expected.u.dtype
            )
            assert found.v is terms[0][0].v and (found.scale, found.basis) == (1.0, 4)
