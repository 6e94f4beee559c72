"""AGZO against its paper, its span, and what it refuses: a replay without data."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests import models
from tests.models import batch_for, loss, normals, same_bits, seeded, target_of, tiny, weights
from torch import Tensor, nn

from zotune.errors import ConfigError, NonFiniteLoss, UserError
from zotune.methods import AGZO, AIMZO
from zotune.methods.agzo import OneSided
from zotune.noise import Key, Purpose, noise

one_thread = models.one_thread


class Net(nn.Module):
    """A table, two linear layers (one with a bias) and a layer x @ W of a bare matrix, in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 5)
        self.one, self.two = nn.Linear(5, 4), nn.Linear(4, 3, bias=False)
        self.last = nn.Parameter(torch.zeros(3, 2))
        self.double()
        for index, parameter in enumerate(self.parameters()):
            parameter.data.copy_(normals(tuple(parameter.shape), index + 1, torch.float64, 0.7))

    def forward(self, ids: Tensor) -> Tensor:
        return self.two(torch.tanh(self.one(self.table(ids)))) @ self.last


IDS = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 0], [2, 2, 7]])
BATCH = {"ids": IDS}
NAMES = ("last", "table.weight", "one.weight", "one.bias", "two.weight")


def objective(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return (model(batch["ids"]) - 0.3).square().mean((1, 2))


def at(theta: dict[str, Tensor], batch: dict[str, Tensor]) -> float:
    """The mean loss at plain tensors."""
    hidden = torch.tanh(theta["table.weight"][batch["ids"]] @ theta["one.weight"].T + theta["one.bias"])
    return float((hidden @ theta["two.weight"].T @ theta["last"] - 0.3).square().mean((1, 2)).mean())


TURNED = {"last"}  # the layer x @ W: its inputs are at the rows


def inputs_of(theta: dict[str, Tensor], ids: Tensor) -> dict[str, Tensor]:
    """(tokens, inputs) of each layer."""
    rows = theta["table.weight"][ids]
    hidden = torch.tanh(rows @ theta["one.weight"].T + theta["one.bias"])
    top = hidden @ theta["two.weight"].T
    return {"one.weight": rows.reshape(-1, 5), "two.weight": hidden.reshape(-1, 4), "last": top.reshape(-1, 3)}


def paper_basis(inputs: Tensor, omega: Tensor, rounds: int) -> Tensor:
    """The paper's power iteration, H = inputs', with Gram-Schmidt for the QR."""
    y = inputs.T @ omega
    for _ in range(rounds):
        y = inputs.T @ (inputs @ gram_schmidt(y))
    return gram_schmidt(y)


def gram_schmidt(y: Tensor) -> Tensor:
    columns: list[Tensor] = []
    for column in y.T:
        for _ in range(2):  # twice is enough
            column = column - sum(q * (q @ column) for q in columns)
        columns.append(column / column.norm())
    return torch.stack(columns, 1)


def paper_z(theta: dict[str, Tensor], key: Key, ids: Tensor, rank: int, rounds: int, rms: bool) -> dict[str, Tensor]:
    """Z of every tensor: R A' where a layer showed its inputs, A R' where it is x @ W, dense elsewhere."""
    shown, z = inputs_of(theta, ids), {}
    for name, weight in theta.items():
        if name not in shown:
            z[name] = noise("gaussian", key, name, 0, weight.numel()).double().view(weight.shape)
            continue
        outputs, inputs = weight.T.shape if name in TURNED else weight.shape
        h, r = shown[name], min(rank, inputs)
        start = Key(key.seed, key.step, 0, Purpose.BASIS)
        omega = noise("gaussian", start, name, 0, len(h) * r).double().view(-1, r)
        random = noise("gaussian", key, name, 0, outputs * rank).double().view(outputs, rank)[:, :r]
        own = random @ paper_basis(h, omega, rounds).T * ((inputs / r) ** 0.5 if rms else 1.0)
        z[name] = own.T if name in TURNED else own
    return z


@pytest.mark.parametrize("lanes", ["auto", "off"])
@pytest.mark.parametrize(
    "options",
    [
        {"rank": 1},
        {"rank": 2, "rounds": 1, "normalize": "none"},
        {"rank": 9, "queries": 3},
        {"rank": 2, "sided": "two", "queries": 2},
    ],
)
def test_five_steps_equal_the_paper(options: dict[str, Any], lanes: Any) -> None:
    """Bases from this step's inputs, the centre as one side or beside both, every kind of tensor; 1e-9."""
    lr, eps = 0.05, 1e-2
    queries, sided = options.get("queries", 1), options.get("sided", "one")
    rank, rounds, rms = options["rank"], options.get("rounds", 3), options.get("normalize", "rms") == "rms"
    model = Net()
    theta = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    assert set(theta) == set(NAMES)
    optimizer = AGZO(model, lr=lr, eps=eps, seed=6, lanes=lanes, **options)
    for step in range(5):
        batch = {"ids": IDS[: 4 - step % 2]}
        base, new, losses = at(theta, batch), {name: w.clone() for name, w in theta.items()}, []
        for query in range(queries):
            z = paper_z(theta, Key(6, step, query), batch["ids"], rank, rounds, rms)
            plus = at({name: w + eps * z[name] for name, w in theta.items()}, batch)
            minus = at({name: w - eps * z[name] for name, w in theta.items()}, batch)
            slope = (plus - base) / eps if sided == "one" else (plus - minus) / (2 * eps)
            losses += [plus] if sided == "one" else [plus, minus]
            new = {name: w - lr * slope / queries * z[name] for name, w in new.items()}
        theta, seen = new, [base, *losses] if sided == "one" else losses
        before = optimizer.evaluator.forwards
        found = optimizer.step(objective, batch)
        assert found == pytest.approx(sum(seen) / len(seen), rel=1e-10)
        assert optimizer.evaluator.forwards - before == (queries + 1 if sided == "one" else 2 * queries + 1)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.detach(), theta[name], rtol=0, atol=1e-9)


def test_the_gradient_of_a_layer_lies_in_the_full_span() -> None:
    """With as many columns as the inputs have directions, A A' leaves the true gradient as it is."""
    model = Net()
    ids = IDS[:1, :2]  # two tokens: the gradient has rank two at most
    optimizer = AGZO(model, rank=2)
    optimizer.look(objective, {"ids": ids})
    objective(model, {"ids": ids}).mean().backward()
    for name in ("one.weight", "two.weight", "last"):
        target = target_of(optimizer, name)
        factors = optimizer.direction.factors(target, Key(0, 0))
        gradient = model.get_parameter(name).grad
        assert factors is not None and gradient is not None and float(gradient.norm()) > 1e-3
        basis, gradient = (factors.u, gradient.T) if name in TURNED else (factors.v, gradient)
        torch.testing.assert_close(basis.T @ basis, torch.eye(2, dtype=torch.float64), rtol=0, atol=1e-12)
        torch.testing.assert_close(gradient @ basis @ basis.T, gradient, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("normalize", "scale"), [("none", 1.0), ("rms", 5 / 2)])
def test_the_estimate_is_unbiased_on_its_span(normalize: Any, scale: float) -> None:
    """On a loss that is linear in W the mean of `coef z` is scale A A' grad within 4.5 standard errors of 600 steps.

    The two tokens are always the same, so A spans the same plane in every step: the projector is A A'.
    """
    layer = seeded(lambda: nn.Linear(5, 3, bias=False)).double()
    x, slope = normals((2, 5), 3, torch.float64), normals((2, 3), 4, torch.float64)
    optimizer = AGZO(layer, lr=0.0, eps=0.5, rank=2, sided="two", normalize=normalize, lanes="off")
    q = gram_schmidt(x.T)
    expected = scale * slope.T @ x @ q @ q.T
    estimates = []
    for step in range(600):
        optimizer.estimate(lambda model, batch: (model(batch["x"]) * slope).sum().reshape(1), {"x": x})
        z = optimizer.direction.block(target_of(optimizer, "weight"), Key(0, step), 0, 15).view(3, 5)
        estimates.append(optimizer.probes[0].coef * z)
        optimizer.step()
    found = torch.stack(estimates)
    bound = 4.5 * found.std(0) / len(found) ** 0.5
    assert bool(((found.mean(0) - expected).abs() <= bound).all())
    assert float(bound.max()) < float(expected.norm())


def test_micro_batches_share_the_basis_of_the_first() -> None:
    """The same record from another first micro-batch is another: A comes from it alone."""
    ends = []
    for order in ((0, 2), (2, 0)):
        model = Net()
        optimizer = AGZO(model, lr=0.1, eps=1e-2, lanes="off")
        for first in order:
            optimizer.estimate(objective, {"ids": IDS[first : first + 2]})
        assert optimizer.evaluator.forwards == 4
        bases = dict(optimizer.direction._bases)  # type: ignore[attr-defined]
        shown = inputs_of(weights(model), IDS[order[0] : order[0] + 2])["one.weight"]
        omega = noise("gaussian", Key(0, 0, 0, Purpose.BASIS), "one.weight", 0, len(shown)).double().view(-1, 1)
        torch.testing.assert_close(bases["one.weight"][1], paper_basis(shown, omega, 3), rtol=0, atol=1e-12)
        optimizer.step()
        ends.append(weights(model))
    assert not same_bits(*ends)


def test_a_replay_needs_the_inputs() -> None:
    """A record alone is refused with the remedy; shown the step's first batch it gives the same bits."""
    batch, records = batch_for("llama"), []
    first, second = tiny("llama"), tiny("llama")
    optimizer, other = AGZO(first, lr=0.1, eps=1e-2), AGZO(second, lr=0.1, eps=1e-2)
    optimizer.record = records.append
    for _ in range(3):
        optimizer.step(loss, batch)
    for record in records:
        with pytest.raises(UserError, match="draws its directions from the inputs.*Remedy: .*zotune replay"):
            other.replay(record)
        other.look(loss, batch)
        other.replay(record)
    assert same_bits(weights(first), weights(second))


def test_layers_that_were_not_reached_are_dense() -> None:
    """Before the inputs were seen, and for another step than the one that saw them, z is the dense one."""
    model = Net()
    optimizer = AGZO(model)
    target = target_of(optimizer, "one.weight")
    dense = noise("gaussian", Key(0, 0), "one.weight", 0, 20)
    assert torch.equal(optimizer.direction.block(target, Key(0, 0), 0, 20), dense)
    optimizer.look(objective, BATCH)
    assert not torch.equal(optimizer.direction.block(target, Key(0, 0), 0, 20).float(), dense)
    later = noise("gaussian", Key(0, 1), "one.weight", 0, 20)
    assert torch.equal(optimizer.direction.block(target, Key(0, 1), 0, 20), later)


def test_one_sided_probes() -> None:
    """Each query against the centre, which is evaluated first."""
    estimator = OneSided(0.5, 2)
    assert [point.scale for point in estimator.points(3, 4)] == [0.0, 0.5, 0.5]
    found = estimator.probes(3, 4, [1.0, 2.0, -1.0])
    assert [(p.key, p.coef, p.losses) for p in found] == [
        (Key(3, 4, 0), 1.0, (2.0, 1.0)),
        (Key(3, 4, 1), -2.0, (-1.0, 1.0)),
    ]


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"rounds": 0}, {"eps": 0.0}, {"queries": 0}, {"eps": float("nan")}])
def test_impossible_arguments_are_refused(wrong: dict[str, Any]) -> None:
    """Before anything is evaluated, with a remedy."""
    with pytest.raises(ConfigError, match="Remedy"):
        AGZO(Net(), **wrong)


def test_a_non_finite_centre_is_refused() -> None:
    """NaN inputs give no update: the message names the step, and the weights keep their bits."""
    model = Net()
    with torch.no_grad():
        model.table.weight[1, 0] = float("nan")
    before = weights(model)
    optimizer = AGZO(model, lr=0.1)
    with pytest.raises(NonFiniteLoss, match="step 0"):
        optimizer.step(objective, BATCH)
    assert same_bits(weights(model), before) and optimizer.steps == 0


class Mixed(nn.Module):
    """A table, a norm, a convolution, and a linear layer that is not always used."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm, self.conv = nn.Embedding(9, 6), nn.LayerNorm(6), nn.Conv1d(6, 6, 1)
        self.linear = nn.Linear(6, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.linear(self.conv(self.norm(self.table(ids)).mT).mT)


@pytest.mark.parametrize("method", [AGZO, AIMZO])
@pytest.mark.parametrize("scope", ["regex:table", "regex:conv", "regex:(table|norm)"])
def test_a_scope_without_inputs_is_refused(method: Any, scope: str) -> None:
    """Tables and convolutions are multiplied with nothing: a sentence instead of MeZO under another name."""
    model = Mixed()
    before = weights(model)
    optimizer = method(model, scope=scope, lr=0.1, eps=1e-2)
    with pytest.raises(ConfigError, match=f"{optimizer.method} takes its directions.*{optimizer.names[0]}.*Remedy: a"):
        optimizer.step(objective, BATCH)
    assert same_bits(weights(model), before) and optimizer.steps == 0
    method(model, scope=f"regex:linear|{scope.removeprefix('regex:')}", lr=0.1, eps=1e-2).step(objective, BATCH)


@pytest.mark.parametrize("method", [AGZO, AIMZO])
def test_the_layers_of_gpt_2_show_their_inputs(method: Any) -> None:
    """Its linear layers are x @ W: every matrix of the blocks has a z in their span, of rank one."""
    model = tiny("gpt2", torch.float64)
    optimizer = method(model, scope="last:1", lr=0.1, eps=1e-2)
    optimizer.look(loss, batch_for("gpt2"))
    matrices = [target for target in optimizer.perturber.targets() if target.data.dim() == 2]
    assert len(matrices) == 4
    for target in matrices:
        z = optimizer.direction.block(target, Key(0, 0), 0, target.data.numel()).view(target.data.shape)
        assert int(torch.linalg.matrix_rank(z.double(), rtol=1e-6)) == 1, target.name
    before = weights(model)
    optimizer.step(loss, batch_for("gpt2"))
    assert not same_bits(weights(model), before)
