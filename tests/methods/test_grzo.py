"""GRZO against its formula in float64 for every form; its lanes, its one-pass update, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests import models
from tests.models import Weights, batch_for, displaced, flat, loss, normals, own_points, target_of, tiny, weights
from torch import Tensor, nn

from zotune.direction import Direction
from zotune.errors import ConfigError, NonFiniteLoss, UserError
from zotune.estimate import TwoSided
from zotune.methods import GRZO
from zotune.methods.grzo import PerExample, Rounded, SignFlips
from zotune.noise import Key, Purpose, noise
from zotune.optimizer import ZerothOrder
from zotune.records import StepRecord
from zotune.rule import Sgd
from zotune.session import Session

one_thread = models.one_thread
FORMS = ("dense", "low_rank", "strict")
forms = pytest.mark.parametrize("form", FORMS)


def start(dtype: torch.dtype = torch.float64) -> Weights:
    return Weights(a=normals((6, 5), 2, dtype), b=normals(7, 1, dtype))


def rows(count: int) -> dict[str, Tensor]:
    return {"row": torch.arange(count)}


def function(theta: Tensor, row: int) -> Tensor:
    """The loss of one example: each has its own."""
    return (theta.cos() * torch.arange(1, 38)).sum() + (theta * torch.arange(37).roll(row) / 5).sin().sum()


def objective(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    theta = model()
    return torch.stack([function(theta, row) for row in batch["row"].tolist()])


def delta(form: str, step: int, example: int, rank: int = 2, interval: int = 3) -> Tensor:
    """Delta of one example for the tensors a (6, 5) and b (7,), written out from the stream."""
    key, base = Key(6, step, example), Key(6, step)
    signs = noise("rademacher", key, "a (signs)", 0, 11).double()
    r, s = signs[:6, None], signs[6:] if form != "strict" else torch.ones(5)
    if form == "dense":
        u = noise("gaussian", base, "a", 0, 30).view(6, 5).double()
    else:
        left = noise("gaussian", base, "a", 0, 6 * rank).view(6, rank).double()
        right = noise("gaussian", Key(6, step // interval, 0, Purpose.BASIS), "a", 0, 5 * rank).view(5, rank).double()
        u = left @ right.T / rank**0.5
    return torch.cat([(u * r * s).flatten(), noise("rademacher", key, "b (signs)", 0, 7).double()])


@forms
@pytest.mark.parametrize("normalize", ["std", "none"])
@pytest.mark.parametrize("clip", [None, 0.8])
def test_five_steps_equal_the_paper(form: Any, normalize: Any, clip: float | None) -> None:
    """Own directions, differences over their deviation, and their mean; a refresh of v within; to 1e-10."""
    model, lr, eps, count = start(), 1e-3, 1e-2, 4
    theta = flat(model)
    options: dict[str, Any] = {"form": form, "rank": 2, "interval": 3, "normalize": normalize, "clip": clip}
    optimizer = GRZO(model, lr, eps, floor=1e-3, seed=6, **options)
    for step in range(5):
        z = [delta(form, step, example) for example in range(count)]
        both = [[function(theta + side * eps * each, i) for side in (1, -1)] for i, each in enumerate(z)]
        d = torch.stack([plus - minus for plus, minus in both])
        a = d / (d.std(correction=0) + 1e-3) if normalize == "std" else d
        a = a if clip is None else a.clamp(-clip, clip)
        theta = theta - lr / (2 * eps * count) * sum(w * each for w, each in zip(a, z, strict=True))
        optimizer.estimate(objective, {"row": torch.tensor([0, 1, 2])})
        optimizer.estimate(objective, {"row": torch.tensor([3])})  # micro-batches go on counting examples
        optimizer.step()
        torch.testing.assert_close(flat(model), theta, rtol=0, atol=1e-10)


@forms
def test_one_example_without_normalisation_is_mezo_along_its_direction(form: Any) -> None:
    """The same direction under MeZO's own estimator: probes and weights are the same bits, step after step."""
    model, other = start(), start()
    ours = GRZO(model, 1e-3, 1e-2, form=form, interval=2, normalize="none", seed=6)
    direction = SignFlips(form, 2, 2, "gaussian")
    mezo = ZerothOrder(other, lr=1e-3, direction=direction, estimator=TwoSided(1e-2), rule=Sgd(), seed=6)
    for _ in range(5):
        ours.step(objective, rows(1))
        mezo.step(objective, rows(1))
        assert ours.probes == mezo.probes
        assert torch.equal(flat(model), flat(other))


@forms
def test_the_estimate_is_unbiased(form: Any) -> None:
    """On a quadratic that all examples share, the mean of 400 estimates is the gradient within 4.5 errors."""
    model = Weights(matrix=normals((4, 3), 1, torch.float64), vector=normals(4, 2, torch.float64))
    curve = normals((16, 16), 3, torch.float64)
    curve = curve @ curve.T / 16
    optimizer = GRZO(model, 0.0, 1e-2, form=form, rank=3, interval=1, normalize="none")
    gradient, targets = curve @ flat(model), optimizer.perturber.targets()
    theta, estimates = flat(model), []
    for step in range(400):
        keys = [Key(0, step, example) for example in range(3)]
        z = [torch.cat([optimizer.direction.block(t, k, 0, t.data.numel()).double() for t in targets]) for k in keys]
        sides = [theta + side * 1e-2 * each for side in (1, -1) for each in z]
        probes = optimizer.estimator.probes(0, step, [float(x @ curve @ x / 2) for x in sides])
        estimates.append(sum(probe.coef * each for probe, each in zip(probes, z, strict=True)))
    found = torch.stack(estimates)
    bound = 4.5 * found.std(0) / len(found) ** 0.5
    assert bool(((found.mean(0) - gradient).abs() <= bound).all())
    assert float(bound.max()) < float(gradient.norm())


@pytest.mark.parametrize("form", ["low_rank", "strict"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "t5"])
def test_lanes_of_the_low_rank_forms_equal_explicit_copies(form: Any, family: str) -> None:
    """As the contract asks of the dense form: linear layers, GPT-2's, tied tables, learned biases; 2e-14 in float64."""
    model, batch = tiny(family, torch.float64), batch_for(family)
    optimizer = GRZO(model, 1e-3, 1e-2, form=form)
    points = optimizer.estimator.points(0, 0)
    found = optimizer.evaluator.losses(loss, batch, points)
    assert (optimizer.evaluator.mode, optimizer.evaluator.reason) == ("lanes", "")
    with torch.inference_mode():
        for row, own in enumerate(own_points(points, 3)):
            copies = [loss(displaced(optimizer, point), batch)[example] for example, point in enumerate(own)]
            assert float((found[row] - torch.stack(copies)).abs().max()) <= 2e-14


@forms
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_radius_survives_16_bits(form: Any, dtype: torch.dtype) -> None:
    """Slopes seen in lanes are those of one example at a time, within what rounding each loss allows."""
    model, batch = tiny("llama", dtype), batch_for("llama", rows=4)
    found = []
    for lanes in ("on", "off"):
        optimizer = GRZO(model, 1e-3, 0.1, form=form, normalize="none", lanes=lanes, max_lanes=2)  # type: ignore[arg-type]
        optimizer.estimate(loss, batch)
        found.append(torch.tensor([probe.coef for probe in optimizer.probes]))
    assert float((found[0] - found[1]).norm()) < 0.1 * float(found[1].norm())


def count_draws(optimizer: ZerothOrder, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the matrices of which whole rows of U are drawn, as it happens."""
    drawn: list[str] = []
    direction = optimizer.direction
    assert isinstance(direction, SignFlips) and isinstance(direction._u, Rounded)
    inner = direction._u.block

    def block(target: Any, *rest: Any) -> Tensor:
        drawn.append(target.name)
        return inner(target, *rest)

    monkeypatch.setattr(direction._u, "block", block)
    return drawn


def test_all_lanes_share_one_draw_of_u(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides of four examples: every linear layer draws U once, and no perturbed matrix is made."""
    model, batch = tiny("llama"), batch_for("llama", rows=4)
    optimizer = GRZO(model, 1e-3, 1e-2, scope="regex:proj")
    optimizer.estimate(loss, batch)
    assert optimizer.evaluator.mode == "lanes"
    drawn = count_draws(optimizer, monkeypatch)
    monkeypatch.setattr(Direction, "add", lambda *_: pytest.fail("a perturbed weight was made"))
    optimizer.estimate(loss, batch)
    assert sorted(drawn) == sorted(optimizer.names)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_update_is_one_pass(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six examples, one draw of U for each slice; the sum equals the six directions added one after another."""
    model = Weights(a=normals((300, 40), 2, dtype), b=normals(50, 1, dtype))
    optimizer = GRZO(model, 0.5, 1e-2)
    target, z = target_of(optimizer, "a"), torch.zeros(12_000, dtype=torch.float64)
    drawn = count_draws(optimizer, monkeypatch)
    terms = [(Key(0, 0, example), 0.3 * (-1.7) ** example) for example in range(6)]
    zeros = torch.zeros(12_000, dtype=torch.promote_types(dtype, torch.float32))
    found = optimizer.direction.add_sum(target, terms, 0, zeros)
    assert drawn == ["a"]
    for key, scale in terms:
        z += scale * optimizer.direction.block(target, key, 0, 12_000).double()
    torch.testing.assert_close(found.double(), z, rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-5)
    parts = [optimizer.direction.add_sum(target, terms, i, zeros[i : i + 4000]) for i in range(0, 12_000, 4000)]
    assert torch.equal(torch.cat(parts), found)


def test_strict_updates_are_summed_in_one_matrix() -> None:
    """fold_every within the window: weights move when it folds, losses see every update, the end is the same."""
    ends = []
    for fold_every in (1, 4):
        model = tiny("llama", torch.float64)
        before = weights(model)
        optimizer = GRZO(
            model, 1e-3, 1e-2, form="strict", rank=2, interval=4, scope="regex:proj", fold_every=fold_every
        )
        losses = []
        for step in range(8):
            losses.append(optimizer.step(loss, batch_for("llama")))
            moved = any(not torch.equal(before[name], value) for name, value in weights(model).items())
            assert moved == (fold_every == 1 or step >= 3)
        assert optimizer.evaluator.mode == "lanes"
        ends.append((losses, weights(model)))
    assert ends[0][0] == pytest.approx(ends[1][0], abs=1e-12)
    for name, value in ends[0][1].items():
        torch.testing.assert_close(value, ends[1][1][name], rtol=0, atol=1e-12)


# --- refusals --------------------------------------------------------------------------------------------------------


def test_one_example_cannot_be_normalised() -> None:
    """Said before anything is recorded or moved; one more example and the step goes through."""
    model = start()
    optimizer, records = GRZO(model, 1e-3, 1e-2), list[StepRecord]()
    optimizer.record = records.append
    before = flat(model)
    optimizer.estimate(objective, rows(1))
    with pytest.raises(UserError, match="has one.*Remedy: more examples"):
        optimizer.step()
    assert not records and torch.equal(flat(model), before)
    optimizer.estimate(objective, rows(1))
    optimizer.step()
    assert len(records) == 1 and len(records[0].losses) == 4


def test_one_example_is_refused_before_a_forward(config: Any) -> None:
    """Where the number is known: a step on one batch, a run's batch size. Without normalising it is enough."""
    model, calls = start(), list[int]()

    def counted(model: nn.Module, batch: Any) -> Tensor:
        calls.append(1)
        return objective(model, batch)

    with pytest.raises(UserError, match="has one.*Remedy: more examples"):
        GRZO(model, 1e-3, 1e-2).step(counted, rows(1))
    assert not calls
    GRZO(model, 1e-3, 1e-2, normalize="none").step(counted, rows(1))
    with pytest.raises(UserError, match="has one.*Remedy: more examples"):
        Session(config(method="grzo", batch_size=1)).begin()
    Session(config(method="grzo", batch_size=2, micro_batch_size=1)).begin()


@pytest.mark.parametrize("lanes", ["auto", "off"])
def test_the_score_of_a_set_is_refused(lanes: Any) -> None:
    """A scalar for three examples is no loss of any of them, whichever way points are evaluated; nothing moves."""
    model = start()
    optimizer, before = GRZO(model, 1e-3, 1e-2, lanes=lanes), flat(model)
    with pytest.raises(UserError, match="each of the batch's 3 examples.*returned 1.*Remedy"):
        optimizer.step(lambda model, batch: objective(model, batch).mean(), rows(3))
    with pytest.raises(UserError, match="a closure gives one number"):
        optimizer.step(lambda: function(model(), 0))
    with pytest.raises(UserError, match="mapping of tensors"):
        optimizer.step(lambda model, batch: objective(model, {"row": batch[0]}), [torch.arange(3)])
    assert torch.equal(flat(model), before) and optimizer.steps == 0
    optimizer.step(objective, rows(3))


def test_a_loss_that_is_not_finite_names_its_example() -> None:
    """The point that is looked into is that of the example itself: the module is found though the others are fine."""

    class Breaks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Identity()
            self.at: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            bias = self.first.bias + 0.0
            y = self.first(x)
            bad = self.at is not None and bias.dim() == 1 and torch.equal(bias.sign(), self.at)
            return self.second(y + torch.nan if bad else y)

    model = models.seeded(Breaks)
    model.first.bias.data.zero_()
    optimizer = GRZO(model, 1e-3, 1e-2, lanes="off", seed=2)
    batch = {"x": normals((3, 4), 1)}
    bias = target_of(optimizer, "first.bias")
    model.at = -optimizer.direction.block(bias, Key(2, 0, 2), 0, 4)
    others = [optimizer.direction.block(bias, Key(2, 0, example), 0, 4) for example in range(2)]
    assert not any(torch.equal(one.abs() * sign, model.at) for one in others for sign in (one, -one))
    with pytest.raises(NonFiniteLoss, match=r"side - \(-0.01 z\).*comes from second"):
        optimizer.estimate(lambda model, batch: model(batch["x"]).square().mean(1), batch)


WRONG: list[dict[str, Any]] = [
    {"form": "sparse"}, {"normalize": "mean"}, {"floor": 0.0}, {"clip": -1.0}, {"eps": 0.0},
    {"form": "strict", "rank": 0}, {"form": "low_rank", "interval": 0},
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_impossible_arguments_are_refused(wrong: dict[str, Any]) -> None:
    """Each is named with its remedy."""
    with pytest.raises(ConfigError, match="Remedy"):
        GRZO(start(), **wrong)


def test_coefficients_of_equal_losses_are_zero() -> None:
    """A constant objective moves nothing, whatever the number of examples."""
    estimator = PerExample(1e-3, "std", 1e-8, None)
    assert [probe.coef for probe in estimator.probes(0, 0, [0.1] * 10)] == [0.0] * 5
