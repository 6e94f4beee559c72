"""The contract's clause on the mean: on every row of METHODS the estimate's expectation is the method's own P grad."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests import models
from tests.methods.test_contract import keys_of
from tests.models import ROWS, Weights, flat, normals, of, target_of, train
from torch import Tensor

from zotune.methods import METHODS, accepts
from zotune.noise import Key
from zotune.optimizer import ZerothOrder
from zotune.population import deviation

one_thread = models.one_thread
STEPS, SHAPE, VECTOR, EPS = 1000, (4, 3), 4, 1e-2
SIZE = SHAPE[0] * SHAPE[1] + VECTOR
# Arguments under which P is another matrix than the identity, or averages over bases.
MORE: dict[str, dict[str, Any]] = {
    "zo_muon": {"rank": 2},
    "aimzo": {"width": 3, "head": 1, "active": 2, "probes": 3},
    "conmezo": {"angle": 0.9},
    "hizoo": {"smoothing": 0.05},
    "loren": {"lr_cov": 1e-2, "damping": 0.5},
    "es": {"population": 8},
    "eggroll": {"population": 6},
}

# Methods whose estimate has no mean that is linear in the gradient, with the reason.
EXEMPT: dict[str, str] = {}

Projector = Callable[[ZerothOrder, Key], Tensor]


def on_the_matrix(of_rows: Tensor | None = None, of_columns: Tensor | None = None) -> Tensor:
    """P (SIZE, SIZE) of a map of the matrix's rows' or columns' space, the identity elsewhere."""
    left = torch.eye(SHAPE[0], dtype=torch.float64) if of_rows is None else of_rows
    right = torch.eye(SHAPE[1], dtype=torch.float64) if of_columns is None else of_columns
    both = torch.kron(left.contiguous(), right.contiguous())
    return torch.block_diag(both, torch.eye(VECTOR, dtype=torch.float64))


def moving(optimizer: ZerothOrder, key: Key) -> Tensor:
    """Sparse MeZO: what its mask moves, the same in every step while the weights rest."""
    return torch.diag(torch.cat([z != 0 for z in drawn(optimizer, key)]).double())


def inverse_curvature(optimizer: ZerothOrder, key: Key) -> Tensor:
    """HiZOO: E[c z / sqrt(H)] = H^-1 grad, with the H of before the step."""
    state, h = optimizer.direction.state(), []
    for target in optimizer.perturber.targets():
        kept = state.get(f"{target.name}/0")
        h.append(torch.ones(target.data.numel()) if kept is None else kept.reshape(-1))
    return torch.diag(1 / torch.cat(h).double())


def cone(optimizer: ZerothOrder, key: Key) -> Tensor:
    """ConMeZO: E[z z'] given the momentum m, d cos^2 m m' / |m|^2 + sin^2; biased towards m, as it means to be."""
    state, direction = optimizer.direction.state(), optimizer.direction
    if not state:
        return torch.eye(SIZE, dtype=torch.float64)
    m = torch.cat([state[name].double() for name in optimizer.names])
    angle = direction.angle  # type: ignore[attr-defined]
    along = SIZE * math.cos(angle) ** 2 * torch.outer(m, m) / m.square().sum()
    return along + math.sin(angle) ** 2 * torch.eye(SIZE, dtype=torch.float64)


def preconditioned(optimizer: ZerothOrder, key: Key) -> Tensor:
    """LOREN: rho (rho + a a')^-1 on each row of a matrix, with the a of before the step."""
    direction: Any = optimizer.direction
    a, rho = direction.a_of(target_of(optimizer, "matrix"), key).double(), direction.damping
    return on_the_matrix(of_columns=rho * torch.linalg.inv(rho * torch.eye(3).double() + torch.outer(a, a)))


def left_basis(optimizer: ZerothOrder, key: Key) -> Tensor:
    """ZO-Muon, before its matrix sign: P P' on the columns of a matrix."""
    factors = optimizer.direction.factors(target_of(optimizer, "matrix"), key)
    assert factors is not None
    return on_the_matrix(of_rows=(factors.u @ factors.u.T).double())


def inputs_span(optimizer: ZerothOrder, key: Key) -> Tensor:
    """AGZO: scale^2 A A' on the side of the inputs, here the rows."""
    factors = optimizer.direction.factors(target_of(optimizer, "matrix"), key)
    assert factors is not None
    return on_the_matrix(of_rows=factors.scale**2 * (factors.u @ factors.u.T).double())


def maintained_span(optimizer: ZerothOrder, key: Key) -> Tensor:
    """AIM-ZO: n / k sum over the columns q of Q of (the chance that a probe has q) q q'; n rows are the inputs."""
    direction: Any = optimizer.direction
    q = direction._next["matrix"][1].double()
    width, head, active = q.shape[1], direction.head, direction.active_columns
    chance = torch.tensor([1.0] * head + [(active - head) / (width - head)] * (width - head)).double()
    return on_the_matrix(of_rows=len(q) / active * (q * chance) @ q.T)


PROJECTORS: dict[str, Projector] = {
    "sparse_mezo": moving,
    "hizoo": inverse_curvature,
    "conmezo": cone,
    "loren": preconditioned,
    "zo_muon": left_basis,
    "agzo": inputs_span,
    "aimzo": maintained_span,
}


def spread(optimizer: ZerothOrder) -> float:
    """What a method that divides by the losses' spread is to be multiplied with, to be an estimate of the gradient.

    A population's coefficients are differences over their standard deviation: times deviation / eps. Against the
    population's own mean they are short of it by (N - 1) / N. GRZO's have 1 / (2 eps B) and lack the deviation alone.
    """
    losses = [probe.losses for probe in optimizer.probes]
    if optimizer.method in ("fzoo", "es"):
        share = (len(losses) - 1) / len(losses) if optimizer.method == "es" else 1.0
        return deviation([seen[0] for seen in losses]) / EPS / share
    if optimizer.method == "eggroll":
        return deviation([loss for seen in losses for loss in seen]) / EPS
    if optimizer.method == "grzo":
        return deviation([plus - minus for plus, minus in losses]) + float(optimizer.arguments["floor"])
    return 1.0


def drawn(optimizer: ZerothOrder, key: Key) -> list[Tensor]:
    targets = optimizer.perturber.targets()
    return [optimizer.direction.block(target, key, 0, target.data.numel()).double() for target in targets]


@pytest.mark.parametrize("method", METHODS)
def test_the_mean_of_the_estimate_is_the_method_s_own(method: str) -> None:
    """On a quadratic the mean of `spread * sum of coef gain z - P grad` over 1,000 steps is 0 within 4.5 standard
    errors, coordinate by coordinate, with the P that a step had before it; bases that are drawn are new in each.

    P is E[z z'] given what the method has learned: 1 but for PROJECTORS. For methods that divide by the losses' spread
    the estimate is multiplied with it again, and MEAZO's running mean, ZO-Muon's sign and LoZO-M's average are the
    rule's, after the estimate. So no row is exempt. A quadratic makes central differences exact, and what is left of
    one-sided ones is odd in z: nothing but the law of z remains.
    """
    if method in EXEMPT:
        pytest.skip(EXEMPT[method])
    model = Weights(matrix=normals(SHAPE, 1, torch.float64), vector=normals(VECTOR, 2, torch.float64))
    curve = normals((SIZE, SIZE), 3, torch.float64)
    curve, theta = curve @ curve.T / SIZE, flat(model)
    gradient = curve @ theta
    objective = of(lambda joined: joined @ curve @ joined / 2)
    options = {"interval": 1} if "interval" in accepts(method) else {}
    optimizer = train(method, model, lr=0.0, eps=EPS, **options, **MORE.get(method, {}))
    errors = []
    for step in range(STEPS):
        if optimizer.direction.reads_inputs:
            optimizer.look(objective, ROWS)
        keys, targets = keys_of(optimizer, step, 2), optimizer.perturber.targets()
        # Before the step, from whose losses a direction may learn.
        z = {key: torch.cat(drawn(optimizer, key)) for key in keys}
        sizes = torch.tensor([target.data.numel() for target in targets])
        gains = {key: torch.tensor([optimizer.direction.gain(t, key) for t in targets]) for key in keys}
        gains = {key: gain.double().repeat_interleave(sizes) for key, gain in gains.items()}
        expected = PROJECTORS[method](optimizer, keys[0]) @ gradient if method in PROJECTORS else gradient
        optimizer.step(objective, ROWS)
        found = torch.zeros(SIZE, dtype=torch.float64)
        for probe in optimizer.probes:
            found += probe.coef * gains[probe.key] * z[probe.key]
        errors.append(spread(optimizer) * found - expected)
    error = torch.stack(errors)
    bound = 4.5 * error.std(0) / len(error) ** 0.5
    assert bool((error.mean(0).abs() <= bound).all()), (error.mean(0) / bound).tolist()
    assert float(bound.max()) < float(gradient.norm())
