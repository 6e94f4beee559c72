"""ConMeZO against its paper, the law of its cone, and its limit MeZO."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tests import models
from tests.models import Weights, batch_for, flat, loss, normals, of, target_of, tiny
from torch import Tensor

from zotune.errors import ConfigError
from zotune.methods import ConMeZO, MeZO
from zotune.methods.conmezo import Cone
from zotune.noise import LAWS, Key, Law, noise

one_thread = models.one_thread
GRID = torch.arange(1, 38, dtype=torch.float64) / 8


def function(joined: Tensor) -> Tensor:
    return (joined.cos() * GRID).sum()


def start() -> Weights:
    return Weights(a=normals((6, 5), 2, torch.float64), b=normals(7, 1, torch.float64))


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("queries", [1, 2])
@pytest.mark.parametrize("warmup", [0, 3])
def test_six_steps_equal_the_paper(law: Law, queries: int, warmup: int) -> None:
    """z in the cone around m over all tensors, m a moving average of c z; theta agrees to 1e-12."""
    model, lr, eps, phi, beta = start(), 1e-3, 1e-2, 1.2, 0.9
    theta, m = flat(model), torch.zeros(37, dtype=torch.float64)
    optimizer = ConMeZO(model, lr=lr, eps=eps, angle=phi, beta=beta, warmup=warmup, law=law, queries=queries, seed=3)
    for step in range(6):
        angle = math.pi / 2 + (phi - math.pi / 2) * min(1.0, step / warmup) if warmup else phi
        change = torch.zeros_like(m)
        for query in range(queries):
            key = Key(3, step, query)
            z = torch.cat([noise(law, key, "a", 0, 30), noise(law, key, "b", 0, 7)]).double()
            if step:
                z = math.sqrt(37) * math.cos(angle) * m / m.norm() + math.sin(angle) * z
            slope = float(function(theta + eps * z) - function(theta - eps * z)) / (2 * eps * queries)
            change = change + slope * z
        theta, m = theta - lr * change, beta * m + (1 - beta) * change
        optimizer.step(of(function), {})
        torch.testing.assert_close(flat(model), theta, rtol=0, atol=1e-12)


def test_the_cone_s_axis_is_that_of_all_tensors() -> None:
    """Also where a step moves a part: |m| is over what rests too."""
    optimizer = models.train("conmezo", tiny("llama"), blocks="cycle", warmup=0)
    for _ in range(5):
        optimizer.step(loss, batch_for("llama"))
    state = optimizer.direction.state()
    norm = state.pop("/norm")
    assert len(state) == len(optimizer.names)
    assert float(norm) == pytest.approx(float(torch.cat([m.flatten() for m in state.values()]).double().norm()))


def pointed(angle: float) -> tuple[Any, Tensor]:
    """An optimizer whose momentum is known, and that momentum."""
    optimizer = ConMeZO(start(), eps=1e-2, angle=angle)
    m = normals(37, 9, torch.float64)
    state = {"a": m[:30], "b": m[30:], "/norm": m.norm()}
    optimizer.direction.load_state(state)
    return optimizer, m


def test_the_estimate_is_unbiased_on_its_own_projector() -> None:
    """The mean of (z . g) z is (d cos^2 m m' / |m|^2 + sin^2 I) g, and that of |z|^2 is d, within 4.5 std errors."""
    optimizer, m = pointed(1.3)
    g, unit = normals(37, 5, torch.float64), m / m.norm()
    targets = optimizer.perturber.targets()
    keys = [Key(1, step) for step in range(1000)]
    z = torch.stack(
        [torch.cat([optimizer.direction.block(t, key, 0, t.data.numel()) for t in targets]) for key in keys]
    ).double()
    expected = 37 * math.cos(1.3) ** 2 * (unit @ g) * unit + math.sin(1.3) ** 2 * g
    estimates = (z @ g).unsqueeze(1) * z
    for found, mean in ((estimates, expected), (z.square().sum(1, keepdim=True), torch.tensor([37.0]).double())):
        error, bound = found.mean(0) - mean, 4.5 * found.std(0) / len(keys) ** 0.5
        assert bool((error.abs() <= bound).all()), (error / bound).tolist()


def test_the_cone_closes_around_the_momentum() -> None:
    """Angle 0 is the momentum itself, scaled to length sqrt(d); a right angle is MeZO's z."""
    for angle, towards in ((0.0, 1.0), (math.pi / 2, 0.0)):
        optimizer, m = pointed(angle)
        target, key = target_of(optimizer, "a"), Key(0, 3)
        z = optimizer.direction.block(target, key, 0, 30)
        u = noise("gaussian", key, "a", 0, 30).double()
        expected = towards * math.sqrt(37) * m[:30] / m.norm() + (1 - towards) * u
        torch.testing.assert_close(z, expected, rtol=0, atol=1e-14)


def test_a_right_angle_is_mezo() -> None:
    """The weights of MeZO on a language model, to the rounding of a sum with almost nothing."""
    ends = []
    for method, more in ((MeZO, {}), (ConMeZO, {"angle": math.pi / 2})):
        model = tiny("llama", torch.float64)
        optimizer = method(model, lr=1e-2, eps=1e-3, **more)  # type: ignore[operator]
        for _ in range(3):
            optimizer.step(loss, batch_for("llama"))
        ends.append(flat(model))
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-10)


def test_the_warm_up_is_linear_in_the_angle() -> None:
    """From a right angle to the cone's, and no further."""
    cone = Cone("gaussian", 1.0, 0.9, 10)
    assert [cone.angle_at(step) for step in (0, 5, 10, 50)] == pytest.approx(
        [math.pi / 2, (math.pi / 2 + 1) / 2, 1.0, 1.0]
    )
    assert Cone("gaussian", 1.0, 0.9, 0).angle_at(0) == 1.0


def test_a_slice_and_some_rows_are_those_of_the_whole() -> None:
    """z of any slice, in the middle of rows too, and of any rows, with a momentum."""
    model = Weights(a=normals((40, 30), 2))
    optimizer = ConMeZO(model, lr=1e-3, eps=1e-2)
    optimizer.step(of(lambda joined: joined.square().sum()), {})
    target, key = target_of(optimizer, "a"), Key(0, 1)
    whole = optimizer.direction.block(target, key, 0, 1200)
    assert torch.equal(optimizer.direction.block(target, key, 47, 391), whole[47:391])
    rows = torch.tensor([7, 0, 39, 7])
    assert torch.equal(optimizer.direction.rows(target, key, rows), whole.view(40, 30)[rows])


def test_the_declared_memory_is_what_is_kept() -> None:
    """One number per weight, and the norm."""
    optimizer, _ = pointed(1.0)
    plain = MeZO(start()).direction.state_elements(optimizer.perturber.targets())
    assert sum(m.numel() for m in optimizer.direction.state().values()) == 38
    assert optimizer.direction.state_elements(optimizer.perturber.targets()) == plain + 38


@pytest.mark.parametrize("wrong", [{"angle": -0.1}, {"angle": 1.6}, {"beta": 1.0}, {"beta": -0.1}, {"warmup": -1}])
def test_wrong_arguments_are_refused(wrong: dict[str, Any]) -> None:
    """Each with its remedy."""
    with pytest.raises(ConfigError, match="Remedy"):
        ConMeZO(start(), **wrong)
