"""The two phases, micro-batches, groups, schedules, decay, state, closures, and losses that are not finite."""

from __future__ import annotations

import copy
import math
import pickle
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tests import models
from tests.models import (
    ROWS,
    Weights,
    batch_for,
    flat,
    forwards_of,
    loss,
    normals,
    of,
    own_points,
    record_of,
    same_bits,
    seeded,
    takes_closures,
    tiny,
    train,
    weights,
)
from torch import Tensor, nn
from transformers import get_scheduler

from zotune.errors import NonFiniteLoss, UserError
from zotune.estimate import Point
from zotune.nonfinite import replay_step, skipped
from zotune.optimizer import ZerothOrder
from zotune.records import StepRecord
from zotune.stacked import spread_out

one_thread = models.one_thread
methods = pytest.mark.parametrize("method", models.METHOD_ROWS)
halves = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])


def start(dtype: torch.dtype = torch.float64) -> Weights:
    return Weights(a=normals((6, 5), 2, dtype), b=normals(7, 1, dtype))


def bowl(theta: Tensor) -> Tensor:
    return theta.double().square().mean()


# --- two phases ------------------------------------------------------------------------------------------------------


@methods
def test_estimate_then_step_equals_step_with_an_objective(method: str) -> None:
    """The short form is the two phases in a row; both return the mean loss, and probes are known between them."""
    one, other = train(method, start()), train(method, start())
    for _ in range(3):
        mean = one.estimate(of(bowl), ROWS)
        estimate = one.probes
        points = [p for own in own_points(one.estimator.points(0, one.steps), 2) for p in own if p.scale]
        assert [probe.key for probe in estimate] == list(dict.fromkeys(point.key for point in points))
        assert one.step() == other.step(of(bowl), ROWS) == pytest.approx(mean, rel=1e-12)
        assert one.probes == estimate == other.probes
    assert torch.equal(flat(one.model), flat(other.model))
    assert one.steps == 3


def test_step_without_an_estimate_is_an_error() -> None:
    """It says what to call, also right after a step."""
    optimizer = train("mezo", start())
    with pytest.raises(UserError, match=r"found no estimate.*estimate\(objective, batch\)"):
        optimizer.step()
    optimizer.step(of(bowl), {})
    with pytest.raises(UserError, match="found no estimate"):
        optimizer.step()
    assert optimizer.steps == 1


@methods
def test_a_closure_equals_an_objective(method: str) -> None:
    """torch's calling convention, `step(closure)`, with a tensor or a float, gives the same steps; or is refused."""
    if not takes_closures(method):
        with pytest.raises(UserError, match="a closure gives one number"):
            train(method, start()).step(lambda: 1.0)
        return
    ends = []
    for kind in ("objective", "tensor", "float"):
        model = start()
        optimizer = train(method, model, lanes="off")
        for _ in range(3):
            if kind == "objective":
                optimizer.step(of(bowl), {})
            else:
                optimizer.step(
                    lambda model=model, kind=kind: bowl(model()) if kind == "tensor" else float(bowl(model()))
                )
        assert optimizer.evaluator.forwards == 3 * forwards_of(optimizer)
        ends.append(flat(model))
    assert torch.equal(ends[0], ends[1]) and torch.equal(ends[0], ends[2])


def test_lanes_on_refuses_a_closure() -> None:
    """What must ride together cannot where the batch is out of sight; the step is not taken."""
    optimizer = train("mezo", start(), lanes="on")
    with pytest.raises(UserError, match=r"lanes=on, but a closure holds its batch.*Remedy: use lanes=auto"):
        optimizer.step(lambda: 1.0)
    assert optimizer.steps == 0 and optimizer.evaluator.forwards == 0


def test_scalar_losses_weigh_what_they_are_told() -> None:
    """A scalar is one example of the given weight: 3 and 1 rows of mean losses make the mean of 4."""
    model = Weights(w=normals(5, 1, torch.float64))
    optimizer = train("mezo", model)
    rows = normals((4, 5), 2, torch.float64)
    optimizer.estimate(of(lambda theta: (rows[:3] @ theta).mean()), {}, weight=3)
    optimizer.estimate(of(lambda theta: (rows[3:] @ theta).mean()), {}, weight=1)
    found = optimizer.probes[0].coef
    other = train("mezo", Weights(w=normals(5, 1, torch.float64)))
    other.estimate(of(lambda theta: rows @ theta), {})
    assert found == pytest.approx(other.probes[0].coef, rel=1e-10)


def test_what_weighs_nothing_counts_nothing() -> None:
    """A micro-batch of weight 0 is not evaluated; a step of such alone is left out, recorded so, and replays."""
    one, other, records = train("mezo", start()), train("mezo", start()), list[StepRecord]()
    one.record = records.append
    for step, weights_ in enumerate(([0.0, 2.0], [0.0], [1.0])):
        for weight in weights_:
            mean = one.estimate(of(bowl), {}, weight=weight)
            assert math.isnan(mean) == (not weight)
        assert math.isnan(one.step() or 0.0) == (step == 1)
        if step == 1:
            assert not one.probes
            other.skip()
        else:
            other.step(of(bowl), {})
    assert torch.equal(flat(one.model), flat(other.model)) and one.steps == 3
    assert [skipped(record) for record in records] == [False, True, False]
    again = train("mezo", start())
    for record in records:
        replay_step(again, record)
    assert torch.equal(flat(again.model), flat(one.model))
    with pytest.raises(UserError, match="found no estimate"):
        one.step()


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_an_impossible_weight_is_refused(weight: float) -> None:
    """Neither negative nor without a bound."""
    with pytest.raises(UserError, match=r"weight must be a finite number >= 0.*Remedy"):
        train("mezo", start()).estimate(of(bowl), {}, weight=weight)


def test_means_do_not_depend_on_the_order_of_the_examples() -> None:
    """Losses of very different size, in any grouping and order, have one mean: the sum is rounded once."""
    values = [1e16, 1.0, -1e16, 3e-3, 2.0, 1e8, -1e8, 7.0]
    means = set()
    for order in (values, values[::-1], values[3:] + values[:3]):
        for cut in (1, 3, 8):
            optimizer = train("mezo", start(), lanes="off")
            for first in range(0, 8, cut):
                part = torch.tensor(order[first : first + cut], dtype=torch.float64)
                optimizer.estimate(of(lambda theta, part=part: part + 0 * theta.sum()), {})
            means.add(optimizer.step())
    assert len(means) == 1


def test_within_is_entered_around_every_forward() -> None:
    """The caller's context sees the number of lanes of each forward, self-check included, and is left again."""
    seen: list[int] = []

    @contextmanager
    def within(lanes: int) -> Any:
        seen.append(lanes)
        yield
        seen.append(-lanes)

    optimizer = train("mezo", tiny("llama"))
    optimizer.estimate(loss, batch_for("llama"), within=within)
    checks = [2, -2, 1, -1, 1, -1] * 2
    assert seen == [*checks, 2, -2]
    model = start()
    seen.clear()
    train("mezo", model).estimate(lambda: bowl(model()), within=within)
    assert seen == [1, -1, 1, -1]


# --- schedules and state ---------------------------------------------------------------------------------------------


def test_transformers_schedulers_drive_the_lr() -> None:
    """get_scheduler's warmup and decay set the lr of each step, and the records hold what was used."""
    optimizer = train("mezo", start(), lr=0.4)
    scheduler = get_scheduler("linear", optimizer, num_warmup_steps=2, num_training_steps=6)
    records: list[StepRecord] = []
    optimizer.record = records.append
    for _ in range(6):
        optimizer.step(of(bowl), {})
        scheduler.step()
    assert [record.lrs[0] for record in records] == pytest.approx([0.0, 0.2, 0.4, 0.3, 0.2, 0.1])


def test_a_state_of_another_method_is_refused() -> None:
    """Both methods are named; nothing is taken over."""
    optimizer = train("mezo", start())
    with pytest.raises(UserError, match="state of lozo, not of mezo"):
        optimizer.load_state_dict(train("lozo", start(), seed=5).state_dict())
    assert (optimizer.seed, optimizer.steps) == (0, 0)


def test_loading_a_state_forgets_pending_estimates() -> None:
    """Losses of before the load belong to other weights: the next step needs its own estimate."""
    optimizer = train("mezo", start())
    state = optimizer.state_dict()
    optimizer.estimate(of(bowl), {})
    optimizer.load_state_dict(state)
    with pytest.raises(UserError, match="found no estimate"):
        optimizer.step()


@methods
def test_a_record_is_handed_over_before_the_weights_move(method: str) -> None:
    """The journal sees step, lrs and losses while the weights are still those of before; if it fails, nothing moved."""
    model = start()
    before, seen = flat(model), []

    def record(entry: StepRecord) -> None:
        seen.append((entry, flat(model)))

    optimizer = train(method, model, queries=2)
    optimizer.record = record
    optimizer.step(of(bowl), ROWS)
    ((entry, at_record),) = seen
    assert torch.equal(at_record, before) and not torch.equal(flat(model), before)
    assert entry.step == 0 and entry.lrs == (1e-3,)
    assert len(entry.losses) == len(record_of(optimizer, 0, 1.0).losses)
    assert {value for probe in optimizer.probes for value in probe.losses} <= set(entry.losses)

    def full(entry: StepRecord) -> None:
        raise OSError("disk full")

    moved = flat(model)
    optimizer.record = full
    with pytest.raises(OSError, match="disk full"):
        optimizer.step(of(bowl), ROWS)
    assert torch.equal(flat(model), moved) and optimizer.steps == 1


def test_replaying_out_of_order_is_refused() -> None:
    """A record of another step, or with another number of groups, does not follow."""
    optimizer = train("mezo", start())
    for record in (StepRecord(1, (0.1,), (1.0, 2.0)), StepRecord(0, (0.1, 0.1), (1.0, 2.0))):
        with pytest.raises(UserError, match="does not follow step 0"):
            optimizer.replay(record)


def test_a_copy_is_refused() -> None:
    """It would have the groups and neither model nor method; its state goes into one that is built anew."""
    optimizer = train("mezo", start())
    for copied in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(
            UserError, match=r"cannot be copied.*Remedy: .*load_state_dict\(optimizer\.state_dict\(\)\)"
        ):
            copied(optimizer)


def test_a_group_that_is_added_later_is_refused() -> None:
    """Nothing of it is kept: the next step is the one that it would have been."""
    model = start()
    optimizer = train("mezo", model, scope=["a"])
    with pytest.raises(UserError, match="mezo trains the parameters that it was built with. Remedy: build a new"):
        optimizer.add_param_group({"params": [model.b]})
    assert len(optimizer.param_groups) == 1
    optimizer.step(of(bowl), ROWS)


def test_a_batch_without_examples_is_refused() -> None:
    """Told from its tensors, or from an objective that returns no loss; the step can then be made with another."""
    optimizer = train("mezo", start())
    for batch in ({"x": torch.zeros(0, 3)}, {"x": torch.zeros(1)}, object()):
        with pytest.raises(UserError, match="holds no example.*Remedy: leave out"):
            optimizer.step(lambda model, batch: model()[:0], batch)
    assert optimizer.step(of(bowl), ROWS) is not None and optimizer.steps == 1


@pytest.mark.parametrize("lr", [-1.0, math.nan, math.inf])
def test_an_impossible_lr_is_refused(lr: float) -> None:
    """Negative, NaN and infinite learning rates are named."""
    with pytest.raises(UserError, match="lr must be a finite number"):
        train("mezo", start(), lr=lr)


def test_an_impossible_seed_or_dtype_is_refused() -> None:
    """A seed of more than 64 bits, and parameters that cannot hold an update."""
    with pytest.raises(UserError, match="seed must be at least 0 .* Remedy"):
        train("mezo", start(), seed=2**64)
    model = start()
    model.a.requires_grad_(False)
    model.a.data = torch.zeros(6, 5, dtype=torch.int8)
    with pytest.raises(TypeError, match="int8"):
        train("mezo", model, scope=["a", "b"])


# --- losses that are not finite --------------------------------------------------------------------------------------


class Fragile(nn.Module):
    """Two layers; the second turns its output into `bad` on the chosen side of the first bias."""

    def __init__(self, bad: float, side: int) -> None:
        super().__init__()
        self.first, self.second, self.bad, self.side = nn.Linear(4, 4), Breaks(), bad, side
        self.first.bias.data.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x), self.first.bias[:1], self.bad, self.side)


class Breaks(nn.Module):
    """Adds `bad` where the sign of the bias is `side`."""

    def forward(self, x: Tensor, bias: Tensor, bad: float, side: int) -> Tensor:
        return torch.where(bias.float().sign() == side, bad, 0.0).to(x.dtype) + x


@methods
@halves
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("side", [1, -1])
def test_a_loss_that_is_not_finite_is_never_hidden(method: str, dtype: torch.dtype, bad: float, side: int) -> None:
    """The error names step, side, dtype and module; no weight moves, no record is written, and the next step works."""
    batch = {"x": normals((3, 4), 1, dtype)}

    def objective(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return model(batch["x"]).float().square().mean(1)

    # A seed with which step 1 has a point on that side: a one-sided method, or one that moves a part, may have none.
    for seed in range(8, 99):
        model = seeded(lambda: Fragile(0.0, side)).to(dtype)
        optimizer, records = train(method, model, seed=seed), list[StepRecord]()
        optimizer.record = records.append
        optimizer.step(objective, batch)
        point = breaking(optimizer, side)
        if point is not None:
            break
    assert point is not None
    with torch.no_grad():
        model.first.bias.zero_()
    model.bad = bad
    before = weights(model)
    optimizer.estimate(lambda model, batch: model.first(batch["x"]).float().mean(1), batch)
    with pytest.raises(NonFiniteLoss) as caught:
        optimizer.estimate(objective, batch)
    sign = "+" if point.scale > 0 else "-"
    text = str(caught.value)
    for part in (
        "at step 1",
        f"side {sign} (",
        str(dtype).removeprefix("torch."),
        "second (Breaks)",
        "not applied",
        str(bad),
    ):
        assert part in text, part
    assert same_bits(weights(model), before) and len(records) == 1 and optimizer.steps == 1
    with pytest.raises(UserError, match="found no estimate"):
        optimizer.step()
    model.bad = 0.0
    optimizer.step(objective, batch)
    assert optimizer.steps == 2 and len(records) == 2
    assert not same_bits(weights(model), before)


def breaking(optimizer: ZerothOrder, side: int) -> Point | None:
    """The first point of step 1 at which the first bias lies on `side` of zero, for some of three examples."""
    bias = models.target_of(optimizer, "first.bias")
    for point in optimizer.estimator.points(optimizer.seed, 1):
        for own in spread_out(point, 3) if point.scale else ():
            z = optimizer.direction.block(bias, own.key, 0, 4)
            if float(z[0]) * own.scale * side > 0:
                return point
    return None


def test_a_closure_with_nan_is_refused_too() -> None:
    """A float closure cannot be looked into, so the objective is named."""
    model = start()
    with pytest.raises(NonFiniteLoss, match="the objective"):
        train("mezo", model).step(lambda: float(bowl(model())) * math.nan)
