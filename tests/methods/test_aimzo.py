"""AIM-ZO against its paper: the basis that follows the inputs, its columns, leave-one-out, and AGZO as a case."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from tests import models
from tests.methods.test_agzo import IDS, TURNED, Net, at, gram_schmidt, inputs_of, objective
from tests.models import normals, same_bits, seeded, target_of, weights
from torch import Tensor, nn

from zotune.direction import Direction
from zotune.errors import ConfigError
from zotune.methods import AGZO, AIMZO
from zotune.methods.aimzo import LeaveOneOut, MaintainedSpan
from zotune.noise import Key, Purpose, noise

one_thread = models.one_thread


def paper_z(theta: dict[str, Tensor], kept: dict[str, Tensor], key: Key, pick: Any) -> dict[str, Tensor]:
    """Z of every tensor from the step's bases; `pick(name, key, width)` are the columns of the probe."""
    z = {}
    for name, weight in theta.items():
        if name not in kept:
            z[name] = noise("gaussian", key, name, 0, weight.numel()).double().view(weight.shape)
            continue
        outputs, inputs = weight.T.shape if name in TURNED else weight.shape
        active = kept[name][:, pick(name, key, kept[name].shape[1])].double()
        b = noise("gaussian", Key(key.seed, key.step, key.query, Purpose.BASIS), name, 0, active.shape[1]).double()
        a = noise("gaussian", key, name, 0, outputs).double()
        u = torch.outer(a, active @ b)
        z[name] = (u.T if name in TURNED else u) * (outputs * inputs) ** 0.5 / u.norm()
    return z


@pytest.mark.parametrize("eps_steps", [None, 4])
def test_five_steps_equal_the_paper(eps_steps: int | None) -> None:
    """Oja's step and Gram-Schmidt from the last step's basis, leave-one-out, a falling radius; 1e-7.

    The basis is kept in float32, here as there; what differs in its last bit moves z by 1e-8.
    """
    lr, eps, rate, count = 0.05, 1e-2, 0.3, 3
    model = Net()
    theta = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    options: dict[str, Any] = {"width": 4, "head": 1, "active": 2, "probes": count, "eps_steps": eps_steps}
    optimizer = AIMZO(model, lr=lr, eps=eps, seed=6, lanes="off", **options)
    direction = optimizer.direction
    assert isinstance(direction, MaintainedSpan)
    kept: dict[str, Tensor] = {}
    for step in range(5):
        batch = {"ids": IDS[: 4 - step % 2]}
        for name, h in inputs_of(theta, batch["ids"]).items():
            width = min(4, h.shape[1])
            start = noise("gaussian", Key(6, 0, 2**32 - 1, Purpose.BASIS), name, 0, h.shape[1] * width)
            first = start.double().view(-1, width)
            q = kept[name].double() if name in kept else gram_schmidt(first)
            kept[name] = gram_schmidt(q + rate * h.T @ h @ q / len(h)).float()
        radius = eps if eps_steps is None else eps * (0.25 + 0.375 * (1 + math.cos(math.pi * min(step / 4, 1))))
        z = [paper_z(theta, kept, Key(6, step, i), direction.columns) for i in range(count)]
        y = [at({name: w + radius * own[name] for name, w in theta.items()}, batch) for own in z]
        centre, mean = at(theta, batch), sum(y) / count
        for own, loss in zip(z, y, strict=True):
            theta = {name: w - lr * (loss - mean) / ((count - 1) * radius) * own[name] for name, w in theta.items()}
        found = optimizer.step(objective, batch)
        assert found == pytest.approx((centre + sum(y)) / (count + 1), rel=1e-8)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.detach(), theta[name], rtol=0, atol=1e-7)


def test_every_direction_has_the_norm_of_a_dense_one() -> None:
    """|Z| = sqrt(m n), rank one, in the span of the head and some of the tail, other for each probe."""
    optimizer = AIMZO(Net(), width=4, head=1, active=2, probes=5)
    optimizer.look(objective, {"ids": IDS})
    target = target_of(optimizer, "one.weight")
    seen = []
    for query in range(5):
        z = optimizer.direction.block(target, Key(0, 0, query), 0, 20).view(4, 5)
        assert float(z.norm()) == pytest.approx(20**0.5, rel=1e-12)
        assert int(torch.linalg.matrix_rank(z)) == 1
        seen.append(z)
    assert len({round(float((seen[0] * z).sum()), 6) for z in seen}) == 5


def test_columns_are_the_head_and_a_uniform_part_of_the_tail() -> None:
    """Over 3,000 probes each tail column comes with probability (k - h) / (K - h), within 4.5 standard errors."""
    direction = MaintainedSpan(12, 3, 7, 0.3, "gaussian")
    counts, trials = torch.zeros(12), 3000
    for step in range(trials):
        columns = direction.columns("w", Key(1, step), 12)
        assert len(set(columns.tolist())) == 7 and columns[:3].tolist() == [0, 1, 2]
        counts[columns] += 1
    p = 4 / 9
    assert bool((counts[:3] == trials).all())
    assert float((counts[3:] / trials - p).abs().max()) < 4.5 * (p * (1 - p) / trials) ** 0.5
    # Other probes and other tensors choose for themselves; a layer narrower than the width has what it has.
    assert direction.columns("w", Key(1, 0, 1), 12).tolist() != direction.columns("w", Key(1, 0, 0), 12).tolist()
    assert direction.columns("v", Key(1, 0), 12).tolist() != direction.columns("w", Key(1, 0), 12).tolist()
    assert direction.columns("w", Key(1, 0), 5).tolist()[:3] == [0, 1, 2]
    assert direction.columns("w", Key(1, 0), 2).tolist() == [0, 1]


def test_leave_one_out() -> None:
    """Each loss against the mean of the others, over N eps; the centre does not matter; eps falls to a quarter."""
    estimator = LeaveOneOut(0.5, 3, 10)
    losses = [7.0, 1.0, 2.0, 6.0]
    found = [probe.coef for probe in estimator.probes(0, 0, losses)]
    expected = [(y - (sum(losses[1:]) - y) / 2) / (3 * 0.5) for y in losses[1:]]
    assert found == pytest.approx(expected) and sum(found) == pytest.approx(0)
    assert found == [probe.coef for probe in estimator.probes(0, 0, [0.0, *losses[1:]])]
    radii = [estimator.radius(step) for step in (0, 5, 10, 11)]
    assert radii == pytest.approx([0.5, 0.3125, 0.125, 0.125])
    assert [point.scale for point in estimator.points(0, 5)] == pytest.approx([0, *[0.3125] * 3])
    assert LeaveOneOut(0.5, 3).radius(10**6) == 0.5


def test_the_estimate_is_unbiased_on_its_own_law() -> None:
    """On a linear loss the mean of `sum coef z` is E[z z'] grad: n / k P grad in the active plane, 600 steps, 4.5 se.

    A rate of 0 keeps the plane; E[z z'] of a rank-one z of norm sqrt(m n) is n / k on the plane of Q, 0 beside it.
    """
    layer = seeded(lambda: nn.Linear(5, 3, bias=False)).double()
    x, slope = normals((2, 5), 3, torch.float64), normals((2, 3), 4, torch.float64)
    optimizer = AIMZO(layer, lr=0.0, eps=0.5, width=2, head=2, active=2, probes=3, basis_rate=0.0, lanes="off")
    estimates = []
    for step in range(600):
        optimizer.estimate(lambda model, batch: (model(batch["x"]) * slope).sum().reshape(1), {"x": x})
        target = target_of(optimizer, "weight")
        drawn = [optimizer.direction.block(target, Key(0, step, i), 0, 15).view(3, 5) for i in range(3)]
        estimates.append(sum(p.coef * z for p, z in zip(optimizer.probes, drawn, strict=True)))
        optimizer.step()
    q = optimizer.direction.state()["weight"].double()
    expected = 5 / 2 * slope.T @ x @ q @ q.T
    found = torch.stack(estimates)  # type: ignore[arg-type]
    bound = 4.5 * found.std(0) / len(found) ** 0.5
    assert bool(((found.mean(0) - expected).abs() <= bound).all())
    assert float(bound.max()) < float(expected.norm())


@pytest.mark.parametrize("rank", [1, 3])
def test_agzo_is_the_case_without_a_tail_or_a_memory(rank: int) -> None:
    """K = k = h = r and Oja's step without bound: from AGZO's start the basis is AGZO's of one round, to 1e-6.

    For r = 1 then so is the direction: the same line, AGZO's of norm sqrt(n) |R| ("rms"), this one's of sqrt(m n).
    """
    shown = inputs_of({name: p.detach() for name, p in Net().named_parameters()}, IDS)
    agzo = AGZO(Net(), rank=rank, rounds=1)
    agzo.look(objective, {"ids": IDS})
    aim = AIMZO(Net(), width=rank, head=rank, active=rank, probes=2, basis_rate=1e12)
    start = {}
    for name, h in shown.items():
        omega = noise("gaussian", Key(0, 0, 0, Purpose.BASIS), name, 0, len(h) * rank).double().view(-1, rank)
        start[name] = gram_schmidt(h.T @ omega).float()
    aim.direction.load_state(start)
    aim.look(objective, {"ids": IDS})
    for name in shown:
        one, other = basis(agzo.direction, name), basis(aim.direction, name).double()
        torch.testing.assert_close(other, one, rtol=0, atol=1e-6)
        if rank == 1:
            target, size = target_of(agzo, name), agzo.model.get_parameter(name).numel()
            z = agzo.direction.block(target, Key(0, 0), 0, size)
            own = aim.direction.block(target_of(aim, name), Key(0, 0), 0, size)
            assert abs(float(torch.nn.functional.cosine_similarity(z, own, dim=0))) == pytest.approx(1, abs=1e-11)
            inputs = shown[name].shape[1]
            random = noise("gaussian", Key(0, 0), name, 0, size // inputs).double()
            assert float(z.norm()) == pytest.approx(inputs**0.5 * float(random.norm()), rel=1e-6)
            assert float(own.norm()) == pytest.approx(size**0.5, rel=1e-6)


def basis(direction: Direction, name: str) -> Tensor:
    """The basis of the step that is under way."""
    assert hasattr(direction, "_bases") or hasattr(direction, "_next")
    found: Tensor = (direction._bases if hasattr(direction, "_bases") else direction._next)[name][1]  # type: ignore
    return found


def test_both_settle_on_the_leading_directions() -> None:
    """On a batch that stays, AGZO with many rounds and AIM-ZO after many steps span the inputs' leading plane."""
    shown = inputs_of({name: p.detach() for name, p in Net().named_parameters()}, IDS)
    agzo = AGZO(Net(), rank=2, rounds=200)
    agzo.look(objective, {"ids": IDS})
    aim = AIMZO(Net(), lr=0.0, width=2, head=2, active=2, probes=2)
    for _ in range(150):
        aim.step(objective, {"ids": IDS})
    for name in ("one.weight", "two.weight"):  # the last layer's second and third directions are nearly as long
        h = shown[name]
        top = torch.linalg.svd(h, full_matrices=False).Vh[:2]
        for q, tolerance in ((basis(agzo.direction, name), 1e-9), (aim.direction.state()[name].double(), 1e-3)):
            torch.testing.assert_close(q @ q.T, top.T @ top, rtol=0, atol=tolerance)


def test_the_basis_travels_with_the_state() -> None:
    """A run continued with its state goes on to the bit, without the basis another way; looking learns nothing."""
    model = Net()
    optimizer = AIMZO(model, lr=0.01, eps=1e-2, width=4, head=1, active=2, probes=2)
    for _ in range(3):
        optimizer.step(objective, {"ids": IDS})
    state = copy.deepcopy(optimizer.state_dict())
    named = {f"direction/{name}" for name in ("one.weight", "two.weight", "last", "last/turned")}
    assert set(optimizer.carried()) == named
    continued, forgetful = copy.deepcopy(model), copy.deepcopy(model)
    optimizer.step(objective, {"ids": IDS})
    other = AIMZO(continued, lr=0.01, eps=1e-2, width=4, head=1, active=2, probes=2)
    other.load_state_dict(state)
    before = {name: tensor.clone() for name, tensor in other.direction.state().items()}
    other.look(objective, {"ids": IDS[:1]})
    assert same_bits(other.direction.state(), before)
    other.step(objective, {"ids": IDS})
    assert same_bits(weights(continued), weights(model))
    bare = AIMZO(forgetful, lr=0.01, eps=1e-2, width=4, head=1, active=2, probes=2)
    bare.steps = 3
    bare.step(objective, {"ids": IDS})
    assert not same_bits(weights(forgetful), weights(model))


class Sometimes(nn.Module):
    """The second layer runs for half of the batches; a loss may be made NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 5, bias=False), nn.Linear(6, 5, bias=False)

    def forward(self, x: Tensor, both: bool) -> Tensor:
        y = self.one(x)
        return y + self.two(x) if both else y


def test_what_a_step_that_was_left_out_has_seen_is_forgotten() -> None:
    """A replay does not see its inputs, so a basis must not come from them: the same bits, with and without it."""

    def squares(model: nn.Module, batch: Any) -> Tensor:
        output: Tensor = model(batch["x"], batch["both"])
        return output.square().mean(1)

    first, second = normals((3, 6), 1), normals((3, 6), 2)
    ends = []
    for looked in (True, False):
        model = Sometimes()
        with torch.no_grad():
            model.one.weight.copy_(normals((5, 6), 3))
            model.two.weight.copy_(normals((5, 6), 4))
        optimizer = AIMZO(model, lr=0.01, eps=1e-2, width=4, head=1, active=2, probes=2, coverage=False)
        optimizer.step(squares, {"x": first, "both": True})
        if looked:
            optimizer.estimate(squares, {"x": second, "both": True})
            optimizer._losses = []
        optimizer.leave_out()
        for both in (False, True):
            optimizer.step(squares, {"x": first, "both": both})
        ends.append((weights(model), optimizer.direction.state()))
    assert same_bits(ends[0][0], ends[1][0]) and same_bits(ends[0][1], ends[1][1])


@pytest.mark.parametrize(
    "wrong",
    [
        {"head": 65},
        {"active": 129},
        {"head": -1},
        {"head": 0, "active": 0},
        {"probes": 1},
        {"basis_rate": -0.1},
        {"basis_rate": float("nan")},
        {"eps_steps": 0},
        {"eps": 0.0},
    ],
)
def test_impossible_arguments_are_refused(wrong: dict[str, Any]) -> None:
    """Before anything is evaluated, with a remedy."""
    with pytest.raises(ConfigError, match="Remedy"):
        AIMZO(Net(), **wrong)
