"""The contract's clauses on z, on every row of METHODS: draws are pure in their key, and tensors have their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests import models
from tests.methods.test_contract import keys_of
from tests.models import normals, seeded, train
from torch import Tensor, nn
from torch.nn import functional

from zotune import kernels
from zotune.direction import Target
from zotune.methods import METHODS, accepts
from zotune.noise import Key
from zotune.optimizer import ZerothOrder

one_thread = models.one_thread
# Every row, and the arguments that make other directions.
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((method, {}) for method in METHODS),
    ("grzo", {"form": "strict", "rank": 3, "interval": 3}),
    ("grzo", {"form": "low_rank", "rank": 3, "interval": 3}),
    ("subzero", {"sides": 1, "adam": True, "queries": 3}),
    ("subzero", {"reshape": True}),
    ("loren", {"form": "flat"}),
    ("sparse_mezo", {"select": "random"}),
    ("sparse_mezo", {"select": "large"}),
    ("hizoo", {"curvature": "factored"}),
    ("hizoo", {"curvature": "tensor"}),
    ("meazo", {"groups": 2}),
    ("lozo", {"normalize": "none", "law": "rademacher"}),
    ("mezo", {"scaling": "variance"}),
]
variants = pytest.mark.parametrize(("method", "more"), VARIANTS)
X = {"x": normals((3, 20), 5), "row": torch.arange(3)}


class Twins(nn.Module):
    """Layers of one shape, the third with the inputs of the first; a layer x @ W; two vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(20, 12, bias=False) for _ in range(3))
        self.turned = nn.Parameter(torch.zeros(20, 12))
        self.v, self.w = nn.Parameter(torch.zeros(240)), nn.Parameter(torch.zeros(240))
        for index, parameter in enumerate(self.parameters()):
            parameter.data.copy_(normals(tuple(parameter.shape), index))

    def forward(self, x: Tensor) -> Tensor:
        matrices = self.a(x) + self.b(x.flip(1) ** 3) + self.c(x) + x @ self.turned
        return torch.tanh(matrices) + (self.v * self.w).mean()


def objective(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    found: Tensor = model(batch["x"]).square().mean(1)
    return found


def made(method: str, more: dict[str, Any]) -> tuple[ZerothOrder, list[Target]]:
    optimizer = train(method, seeded(Twins), lr=1e-3, **more)
    return optimizer, optimizer.perturber.targets()


def looked(optimizer: ZerothOrder) -> list[Key]:
    """The keys of the step that begins, its inputs seen."""
    if optimizer.direction.reads_inputs:
        optimizer.look(objective, X)
    return keys_of(optimizer, optimizer.steps, 3)


def whole(optimizer: ZerothOrder, target: Target, key: Key) -> Tensor:
    return optimizer.direction.block(target, key, 0, target.data.numel())


@variants
def test_draws_are_pure(method: str, more: dict[str, Any]) -> None:
    """Until the step is over the same question gives the same bits, in any order and after any others, in a second
    object too; a slice, a row, a sum and the factors are those of the whole z.
    """
    (optimizer, targets), (twin, others) = made(method, more), made(method, more)
    for _ in range(4):
        keys, same = looked(optimizer), looked(twin)
        assert keys == same
        first = {(t.name, key): whole(optimizer, t, key).clone() for t in targets for key in keys}
        for target in targets:  # what is asked of other steps changes nothing
            for step in (0, keys[0].step + 7, keys[0].step + 3):
                whole(optimizer, target, Key(keys[0].seed, step, 1))
        for target, other in zip(reversed(targets), reversed(others), strict=True):
            for key in reversed(keys):
                z, size, columns = first[target.name, key], target.data.numel(), target.matrix_shape[1]
                assert torch.equal(whole(optimizer, target, key), z), (key, target.name)
                assert torch.equal(whole(twin, other, key), z), (key, target.name)
                of_parts(optimizer, target, key, z, size, columns)
        optimizer.step(objective, X)
        twin.step(objective, X)


def of_parts(optimizer: ZerothOrder, target: Target, key: Key, z: Tensor, size: int, columns: int) -> None:
    """The other ways to ask for z agree with the whole of it."""
    direction, rows = optimizer.direction, torch.tensor([size // columns - 1, 0, 5, 0])
    for start, stop in ((0, 1), (size // 3, size // 2), (size - 1, size)):
        assert torch.equal(direction.block(target, key, start, stop), z[start:stop])
    assert torch.equal(direction.rows(target, key, rows), z.view(-1, columns)[rows])
    w = target.data.reshape(-1)
    for scale, moved in zip((0.3, -0.3), direction.add(target, key, 0, w, [0.3, -0.3]), strict=True):
        assert torch.equal(moved, kernels.add_scaled(w, z, scale)), target.name
    assert direction.active(target, key) or not bool(z.any())
    factors = direction.factors(target, key)
    if factors is not None:
        product = factors.scale * factors.u.double() @ factors.v.double().T
        torch.testing.assert_close(product.flatten().float(), z.float(), rtol=1e-5, atol=1e-5)


@variants
def test_tensors_of_one_shape_have_noise_of_their_own(method: str, more: dict[str, Any]) -> None:
    """Over 80 steps the cosine of two tensors' z is 0 on average, within 4.5 standard errors, and never near 1.

    That holds for two layers that read the same inputs too, where AGZO and AIM-ZO have one basis for both: each has its
    own random factor. Their cosines spread more than those of independent matrices, so that no bound on them is set.
    """
    every = {"share": 1.0} if "share" in accepts(method) else {}  # a method that takes a few tensors takes them all
    optimizer, targets = made(method, more | every)
    named = {target.name: target for target in targets}
    pairs = [("a.weight", "b.weight"), ("a.weight", "c.weight"), ("v", "w")]
    found: dict[Any, list[Tensor]] = {pair: [] for pair in pairs}
    for _ in range(80):
        for key in looked(optimizer)[:2]:
            for one, other in pairs:
                x, y = (whole(optimizer, named[name], key).double() for name in (one, other))
                if bool(x.any()) and bool(y.any()):
                    found[one, other].append(functional.cosine_similarity(x, y, dim=0))
        optimizer.step(objective, X)
    for pair, cosines in found.items():
        values = torch.stack(cosines)
        assert len(values) >= 10, pair
        assert float(values.mean().abs()) <= 4.5 * float(values.std()) / len(values) ** 0.5, pair
        assert float(values.abs().max()) < 0.99, pair
