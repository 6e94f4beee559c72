"""What every method must do, on every row of METHODS: a new method runs these without a line here."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests import models
from tests.models import (
    FEWEST,
    LANE_FAMILIES,
    OTHERWISE,
    RESCALED,
    ROWS,
    Weights,
    batch_for,
    displaced,
    flat,
    forwards_of,
    loss,
    normals,
    of,
    own_points,
    same_bits,
    seeded,
    tiny,
    train,
    weights,
)
from torch import Tensor, nn
from torch.nn import functional

from zotune.estimate import Point
from zotune.methods import METHODS, accepts, table
from zotune.optimizer import ZerothOrder

one_thread = models.one_thread
methods = pytest.mark.parametrize("method", METHODS)
both = pytest.mark.parametrize(("method", "family"), models.CONTRACT_ROWS)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def evaluated(method: str, family: str, dtype: torch.dtype, lanes: Any) -> tuple[ZerothOrder, Tensor]:
    """An optimizer after one evaluation of the points of step 0, and the losses."""
    model = tiny(family, dtype)
    optimizer, batch = train(method, model, lanes=lanes), batch_for(family)
    if optimizer.direction.reads_inputs:
        optimizer.look(loss, batch)
    return optimizer, optimizer.evaluator.losses(loss, batch, optimizer.estimator.points(0, 0))


def copied(optimizer: ZerothOrder, family: str) -> Tensor:
    """The losses at the points of step 0, (points, examples), from explicitly perturbed copies of the model."""
    batch, found = batch_for(family), []
    with torch.inference_mode():
        for points in own_points(optimizer.estimator.points(0, 0), len(batch["input_ids"])):
            losses = {point: loss(displaced(optimizer, point), batch).double() for point in dict.fromkeys(points)}
            found.append(torch.stack([losses[point][row] for row, point in enumerate(points)]))
    return torch.stack(found)


@both
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 2e-14), (torch.float32, 1e-5)])
def test_lanes_equal_single_evaluations_equal_an_explicit_copy(
    method: str, family: str, dtype: torch.dtype, tolerance: float
) -> None:
    """Losses near 4 equal those of an explicitly perturbed copy: 2e-14 in float64 (last bits), 1e-5 in float32."""
    together, in_lanes = evaluated(method, family, dtype, "auto")
    alone, single = evaluated(method, family, dtype, "off")
    copies = copied(alone, family)
    with torch.inference_mode():
        middle = loss(alone.model, batch_for(family)).double()
    points = alone.estimator.points(0, 0)
    assert in_lanes.shape == single.shape == copies.shape == (len(points), 3)
    assert float((in_lanes - single).abs().max()) <= tolerance
    assert float((single - copies).abs().max()) <= tolerance
    # The points are far apart compared with the tolerance: a lane that was not perturbed would show.
    moved = copies[torch.tensor([point.scale != 0 for point in points])]
    assert float((moved - middle).abs().min()) > 10 * tolerance
    assert (
        float((moved[0] - moved[1]).abs().max()) > 10 * tolerance
    )  # two sides differ on every example, others on some
    if family in LANE_FAMILIES:
        assert (together.evaluator.mode, together.evaluator.reason) == ("lanes", "")
    else:
        assert together.evaluator.mode == "sequential"
        assert "experts" in together.evaluator.reason


@both
def test_evaluating_changes_no_bit_of_the_model(method: str, family: str) -> None:
    """Parameters (minus zeros planted among them), buffers and training flags are as before, in bfloat16 too."""
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny(family, dtype)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.view(-1)[::3] = -0.0
        model.train()
        next(model.children()).eval()
        before, flags = weights(model), [module.training for module in model.modules()]
        holders = [dict(module._parameters) for module in model.modules()]
        optimizer = train(method, model, queries=2)
        optimizer.estimate(loss, batch_for(family))
        assert same_bits(weights(model), before)
        assert [module.training for module in model.modules()] == flags
        assert all(
            held[key] is module._parameters[key]
            for held, module in zip(holders, model.modules(), strict=True)
            for key in held
        )


@methods
@pytest.mark.parametrize("case", ["lr 0", "constant objective"])
def test_a_thousand_steps_without_an_update_change_no_bit(method: str, case: str) -> None:
    """With lr 0, or a loss that never changes, float32, float16 and bfloat16 stay bit-identical, minus zeros too."""
    tensors = {"matrix": normals((9, 7), 1), "vector": normals(11, 2)}
    tensors["matrix"][:, ::3] = tensors["vector"][::4] = -0.0
    kinds = {f"{name}{index}": tensors[name].to(dtype) for name in tensors for index, dtype in enumerate(DTYPES)}
    model = Weights(**kinds)
    before = weights(model)
    optimizer = train(method, model, lr=0.0 if case == "lr 0" else 0.5)
    objective = of(lambda theta: theta.float().square().sum() if case == "lr 0" else theta.float().sum() * 0 + 0.3)
    for _ in range(1000):
        optimizer.step(objective, ROWS)
    assert optimizer.steps == 1000
    assert same_bits(weights(model), before)


ODD: dict[str, tuple[int, ...]] = {
    "matrix": (7, 5),
    "flat": (1, 13),
    "tall": (101, 2),
    "vector": (9,),
    "scalar": (),
    "kernel": (3, 2, 2, 3),
    "large": (401, 307),
    "wide": (50, 2203),
    "long": (100_003,),
}


def probed(optimizer: ZerothOrder, key: Any) -> dict[str, Tensor]:
    """The direction that the evaluation uses, from the stand-ins' values at +1 and -1, per parameter, in float64."""
    sides = []
    for scale in (1.0, -1.0):
        with torch.no_grad(), optimizer.perturber.at(Point(key, scale)):
            parameters = dict(optimizer.model.named_parameters())
            sides.append({name: parameters[name] + 0.0 for name in optimizer.names})
    return {name: (sides[0][name] - sides[1][name]) / 2 for name in optimizer.names}


def keys_of(optimizer: ZerothOrder, step: int, rows: int) -> list[Any]:
    """The keys of all directions that a step probes."""
    points = [p for own in own_points(optimizer.estimator.points(optimizer.seed, step), rows) for p in own]
    return list(dict.fromkeys(point.key for point in points if point.scale))


@methods
@pytest.mark.parametrize("queries", [1, 3])
def test_the_direction_probed_is_the_direction_applied(method: str, queries: int) -> None:
    """On 7 steps, refreshes included, the change of every tensor is -lr sum(coef z) with the z that was evaluated.

    Odd shapes, tensors above 100,000 elements, ranks above a dimension; relative error below 1e-9, so the cosine is 1.
    What makes another change of that sum is held against that one (OTHERWISE), a common factor must be one (RESCALED).
    """
    model = Weights(**{name: normals(shape, len(name), torch.float64) for name, shape in ODD.items()})
    optimizer = train(method, model, lr=0.01, queries=queries)
    slope = normals(flat(model).numel(), 99, torch.float64, 1e-4)
    targets = {target.name: target for target in optimizer.perturber.targets()}
    changed = OTHERWISE[method]() if method in OTHERWISE else None
    for step in range(7):
        if optimizer.direction.reads_inputs:
            optimizer.look(of(lambda theta: slope @ theta), ROWS)
        seen = {key: probed(optimizer, key) for key in keys_of(optimizer, step, 2)}
        before = weights(model)
        gains = {(name, key): optimizer.direction.gain(targets[name], key) for name in ODD for key in seen}
        optimizer.step(of(lambda theta: slope @ theta), ROWS)
        assert {probe.key for probe in optimizer.probes} <= set(seen)
        assert max(queries, FEWEST.get(method, 1)) == len(seen) or "queries" not in accepts(method)
        factors = set()
        for name in ODD:
            applied = (weights(model)[name] - before[name]) / -0.01
            expected = sum(p.coef * gains[name, p.key] * seen[p.key][name] for p in optimizer.probes)
            assert isinstance(expected, Tensor)
            if changed is not None:
                expected = changed(optimizer, targets[name], optimizer.probes[0].key, expected)
            if not float(expected.norm()):  # a part of the scope that this step leaves alone
                assert same_bits({name: weights(model)[name]}, {name: before[name]}), (step, name)
                continue
            cosine = functional.cosine_similarity(applied.reshape(1, -1), expected.reshape(1, -1))
            assert float(cosine) == pytest.approx(1, abs=1e-12), (step, name)
            factor = float(applied.norm() / expected.norm())
            factors.add(factor if method in RESCALED else 1.0)
            assert float((applied - min(factors) * expected).norm()) <= 1e-9 * float(applied.norm()), (step, name)
    assert not same_bits(weights(model), {name: normals(ODD[name], len(name), torch.float64) for name in ODD})


class Lookup(nn.Module):
    """A table, a linear layer and GPT-2's kind of linear layer: the operations with short ways past the weight."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(23, 5).double()
        self.linear = nn.Linear(11, 6).double()
        self.turned = nn.ParameterDict({"w": torch.zeros(4, 9, dtype=torch.float64)})
        for index, parameter in enumerate(self.parameters()):
            parameter.data.copy_(normals(tuple(parameter.shape), index, torch.float64))

    def forward(self) -> dict[str, Tensor]:
        double = {"dtype": torch.float64}
        turned = self.turned["w"]
        return {
            "table.weight": self.table(torch.arange(23).flip(0)).flip(0),
            "linear.weight": (self.linear(torch.eye(11, **double)) - self.linear(torch.zeros(1, 11, **double))).T,
            "linear.bias": self.linear(torch.zeros(1, 11, **double))[0],
            "turned.w": torch.addmm(torch.zeros(9, **double), torch.eye(4, **double), turned) / 2
            + torch.eye(4, **double) @ turned / 2,
        }


@methods
def test_the_direction_seen_through_a_forward_is_the_direction_that_is_drawn(method: str) -> None:
    """Identity inputs read each weight through the model's operations: those values are the direction's own."""
    model = seeded(Lookup)
    optimizer = train(method, model, lr=0.01)
    slope = {name: normals(tuple(parameter.shape), 50, torch.float64) for name, parameter in model.named_parameters()}

    def objective(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return sum((model()[name] * slope[name]).sum() for name in slope).expand(len(batch["row"]))  # type: ignore[union-attr]

    for step in range(5):
        if optimizer.direction.reads_inputs:
            optimizer.look(objective, ROWS)
        key = keys_of(optimizer, step, 2)[0]
        sides = []
        for scale in (1.0, -1.0):
            with torch.no_grad(), optimizer.perturber.at(Point(key, scale)):
                sides.append(model())
        for target in optimizer.perturber.targets():
            z = (sides[0][target.name] - sides[1][target.name]).flatten() / 2
            drawn = optimizer.direction.block(target, key, 0, target.data.numel()).double()
            assert float((drawn - z).norm()) <= 1e-9 * float(drawn.norm()), (step, target.name)
        optimizer.step(objective, ROWS)


@methods
def test_micro_batches_equal_one_batch_exactly(method: str) -> None:
    """Per-example losses: however ten examples are split, the record and the weights are the same bits."""
    ends = []
    for sizes in ((10,), (4, 6), (1, 2, 3, 4), (6, 4)):
        model, records = tiny("llama", torch.float64), []
        optimizer = train(method, model, lanes="off", queries=2)
        optimizer.record = records.append
        batch = batch_for("llama", rows=10)
        # The losses of an example may differ in the last bit between batch sizes: they are computed once, alone.
        for _ in range(2):
            first = 0
            for size in sizes:
                part = {key: value[first : first + size] for key, value in batch.items()}
                optimizer.estimate(one_by_one, part)
                first += size
            optimizer.step()
        ends.append((records, weights(model)))
    for records, end in ends[1:]:
        assert records == ends[0][0]
        assert same_bits(end, ends[0][1])


def one_by_one(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """`loss`, one forward for each example: the result cannot depend on the batch size."""
    rows = len(batch["input_ids"])
    return torch.cat([loss(model, {key: value[i : i + 1] for key, value in batch.items()}) for i in range(rows)])


@methods
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_state_continues_bit_identically(method: str, dtype: torch.dtype) -> None:
    """Five steps, state and weights to new objects, five more: equal to ten, whatever the weights were in between."""
    batch = batch_for("gpt2")
    straight = tiny("gpt2", dtype)
    optimizer = train(method, straight, lr=3e-2, seed=4)
    for _ in range(10):
        optimizer.step(loss, batch)

    first = tiny("gpt2", dtype)
    half = train(method, first, lr=3e-2, seed=4)
    for _ in range(5):
        half.step(loss, batch)
    state = copy.deepcopy(half.state_dict())
    second = tiny("gpt2", dtype, seed=1)
    second.load_state_dict(first.state_dict())
    other = train(method, second, lr=1e-9, seed=0)
    other.load_state_dict(state)
    assert other.steps == 5
    for _ in range(5):
        other.step(loss, batch)
    assert same_bits(weights(second), weights(straight))


@methods
def test_halving_eps_halves_every_radius(method: str) -> None:
    """The points of later steps lie at half the distance, and a state that is carried on keeps that."""
    optimizer, other, plain = (train(method, tiny("llama"), eps=1e-2, halve_eps=True) for _ in range(3))
    optimizer.leave_out()
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for step in (1, 2):
        expected = [point.scale / 2 for point in plain.estimator.points(0, step)]
        for halved in (optimizer, other):
            assert [point.scale for point in halved.estimator.points(0, step)] == expected
    assert optimizer.estimator.eps == other.estimator.eps == 5e-3


@methods
@pytest.mark.parametrize("queries", [1, 3])
def test_forwards_counted_are_forwards_declared(method: str, queries: int) -> None:
    """As many forwards as the table says, by the evaluator's count and, independently, by the rows the model met."""
    for lanes in ("off", "auto"):
        model, seen = tiny("llama"), []
        optimizer = train(method, model, queries=queries, lanes=lanes)
        forwards = forwards_of(optimizer)
        optimizer.step(loss, batch_for("llama"))  # the first step also proves the lanes
        optimizer.evaluator.forwards = 0
        hook = model.register_forward_hook(lambda module, args, output, seen=seen: seen.append(len(output.logits)))
        for _ in range(3):
            optimizer.step(loss, batch_for("llama"))
        hook.remove()
        assert optimizer.evaluator.forwards == 3 * forwards
        assert sum(seen) == 3 * forwards * 3
        # A centre that shows the layers' inputs comes first, alone: the directions of the other points depend on it.
        free = [p for p in optimizer.estimator.points(0, 0) if p.scale or not optimizer.direction.reads_inputs]
        if lanes == "auto" and len(free) > 1:
            assert len(seen) < 3 * forwards


def test_the_table_is_complete() -> None:
    """Each row names its paper and its cost, and its factory takes the arguments every method has."""
    assert [row["name"] for row in table()] == list(METHODS)
    for name, row in METHODS.items():
        assert row.name == name and row.arxiv.count(".") == 1 and row.forwards_per_step and row.state
        assert {"lr", "eps", "seed"} <= accepts(name)
        optimizer = train(name, nn.Linear(2, 2))
        assert optimizer.method == name and set(optimizer.arguments) <= accepts(name)
