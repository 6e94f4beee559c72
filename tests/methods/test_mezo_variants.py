"""MeZO's variants against the appendices of its paper, written again in a few lines of float64."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from tests import models
from tests.models import Weights, batch_for, flat, loss, normals, of, same_bits, tiny, weights
from torch import Tensor, nn

from zotune import kernels
from zotune.errors import ConfigError
from zotune.methods import MeZO
from zotune.methods.mezo_variants import GrowingSamples, PastProbes, ResidualFeedback, gradient_norms
from zotune.noise import Key, noise
from zotune.rebuild import rebuild

one_thread = models.one_thread
SHAPES = {"a": (6, 5), "b": (7,)}
SEED = 2**40 + 6  # more than 32 bits: a past probe must keep them all


def start() -> Weights:
    return Weights(**{name: normals(shape, len(shape), torch.float64) for name, shape in SHAPES.items()})


def function(joined: Tensor) -> Tensor:
    return (joined.cos() * torch.arange(1, joined.numel() + 1)).sum()


def z_of(step: int, query: int = 0) -> Tensor:
    key = Key(SEED, step, query)
    return torch.cat([noise("gaussian", key, "a", 0, 30), noise("gaussian", key, "b", 0, 7)]).double()


def slope_of(theta: Tensor, z: Tensor, eps: float = 1e-2) -> float:
    return float(function(theta + eps * z) - function(theta - eps * z)) / (2 * eps)


@pytest.mark.parametrize("lanes", ["auto", "off"])
def test_samples_grow_with_the_steps(lanes: Any) -> None:
    """max(1, floor(t / T n)) directions, averaged: 1, 1, 2, 3, 4, 4 for n = 4 and T = 5 from t = 1 on."""
    model, lr = start(), 0.01
    theta, counts = flat(model), []
    optimizer = MeZO(model, lr=lr, eps=1e-2, queries=4, samples_over=5, seed=SEED, lanes=lanes)
    for step in range(8):
        n = max(1, min(4, math.floor(step / 5 * 4)))
        counts.append(n)
        drawn = [z_of(step, query) for query in range(n)]
        theta = theta - lr / n * sum(slope_of(theta, z) * z for z in drawn)
        before = optimizer.evaluator.forwards
        optimizer.step(of(function), {})
        assert optimizer.evaluator.forwards - before == 2 * n
        torch.testing.assert_close(flat(model), theta, rtol=0, atol=1e-10)
    assert counts == [1, 1, 1, 2, 3, 4, 4, 4]
    assert len(GrowingSamples(1e-3, 3, 10**12).points(0, 10**12 - 1)) == 2 * 2


def test_one_point_feedback() -> None:
    """One forward a step against the last step's loss; the first step moves nothing; memory travels with the state."""
    model, lr, eps = start(), 0.002, 1e-2
    theta, previous = flat(model), None
    optimizer = MeZO(model, lr=lr, eps=eps, feedback="residual", seed=SEED)
    for step in range(6):
        z = z_of(step)
        value = float(function(theta + eps * z))
        coef = 0.0 if previous is None else (value - previous) / eps
        theta, previous = theta - lr * coef * z, value
        found = optimizer.step(of(function), {})
        assert found == pytest.approx(value) and optimizer.probes[0].coef == pytest.approx(coef, rel=1e-6)
        torch.testing.assert_close(flat(model), theta, rtol=0, atol=1e-9)
        if step == 3:
            state, copied = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(model)
    assert optimizer.evaluator.forwards == 6
    other = MeZO(copied, lr=1.0, eps=eps, feedback="residual")
    other.load_state_dict(state)
    for _ in range(2):
        other.step(of(function), {})
    assert same_bits(weights(copied), weights(model))


@pytest.mark.parametrize("queries", [1, 2])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_momentum_is_torch_s(queries: int, decay: float) -> None:
    """torch.optim.SGD with momentum, given the same estimates, as long as nothing is cut off; 1e-10."""
    model, lr = start(), 0.002
    stored = [nn.Parameter(parameter.detach().clone()) for parameter in model.parameters()]
    # Decay is decoupled and spares vectors; torch's is neither, so it is done by hand.
    reference = torch.optim.SGD(stored, lr=lr, momentum=0.9)
    optimizer = MeZO(
        model, lr=lr, eps=1e-2, queries=queries, moments="momentum", weight_decay=decay, seed=SEED, lanes="off"
    )
    for step in range(12):
        theta = torch.cat([parameter.detach().flatten() for parameter in stored])
        drawn = [z_of(step, query) for query in range(queries)]
        gradient = sum(slope_of(theta, z) / queries * z for z in drawn)
        assert isinstance(gradient, Tensor)
        stored[0].grad, stored[1].grad = gradient[:30].view(6, 5), gradient[30:]
        with torch.no_grad():
            stored[0].mul_(1 - lr * decay)
        reference.step()
        optimizer.step(of(function), {})
        end = torch.cat([parameter.detach().flatten() for parameter in stored])
        torch.testing.assert_close(flat(model), end, rtol=0, atol=1e-10)


def test_adam_is_torch_s() -> None:
    """torch.optim.Adam, given the same estimates, as long as nothing is cut off; 1e-9."""
    model, lr = start(), 0.02
    stored = nn.Parameter(flat(model))
    reference = torch.optim.Adam([stored], lr=lr, betas=(0.9, 0.999), eps=1e-8)
    optimizer = MeZO(model, lr=lr, eps=1e-2, moments="adam", seed=SEED, lanes="off")
    for step in range(12):
        z = z_of(step)
        stored.grad = slope_of(stored.detach(), z) * z
        reference.step()
        optimizer.step(of(function), {})
        torch.testing.assert_close(flat(model), stored.detach(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("moments", ["momentum", "adam"])
def test_past_probes_are_cut_off_and_travel(moments: Any) -> None:
    """With a history of three the formula runs over three steps; the state is that many probes, and nothing else."""
    model, lr = start(), 0.01
    theta, gradients = flat(model), []
    options: dict[str, Any] = {"moments": moments, "beta1": 0.5, "beta2": 0.8, "history": 3}
    optimizer = MeZO(model, lr=lr, eps=1e-2, queries=2, seed=SEED, **options)
    for step in range(7):
        drawn = [z_of(step, query) for query in range(2)]
        gradients = [sum(slope_of(theta, z) / 2 * z for z in drawn), *gradients][:3]
        if moments == "momentum":
            theta = theta - lr * sum(0.5**age * g for age, g in enumerate(gradients))
        else:
            first, second = [0.5**age for age in range(len(gradients))], [0.8**age for age in range(len(gradients))]
            mean = sum(w * g for w, g in zip(first, gradients, strict=True)) / sum(first)
            square = sum(w * g**2 for w, g in zip(second, gradients, strict=True)) / sum(second)
            theta = theta - lr * mean / (square.sqrt() + 1e-8)  # type: ignore[union-attr]
        optimizer.step(of(function), {})
        torch.testing.assert_close(flat(model), theta, rtol=0, atol=1e-9)
        if step == 4:
            state, copied = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(model)
    carried = {name: tuple(tensor.shape) for name, tensor in optimizer.carried().items()}
    assert carried == {"rule/keys": (6, 4), "rule/coefs": (6,)}
    other = MeZO(copied, lr=1.0, eps=1e-2, queries=2, **options)
    other.load_state_dict(state)
    for _ in range(2):
        other.step(of(function), {})
    assert same_bits(weights(copied), weights(model))


@pytest.mark.parametrize("variant", [{"queries": 4, "samples_over": 5}, {"feedback": "residual"}, {"queries": 3}])
def test_forwards_are_as_declared(variant: dict[str, Any]) -> None:
    """Step by step, also while the number of directions grows."""
    optimizer = MeZO(tiny("llama"), lanes="off", **variant)
    for step in range(7):
        before = optimizer.evaluator.forwards
        optimizer.step(loss, batch_for("llama"))
        assert optimizer.evaluator.forwards - before == models.forwards_of(optimizer, step)


@pytest.mark.parametrize("scaling", [None, "variance"])
def test_a_past_step_costs_a_draw_of_each_tensor(scaling: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one of all small tensors for each of them: of 40 tensors a step with 8 behind it draws 9 times their size."""
    model, drawn = Weights(**{f"w{i}": normals((4, 8), i) for i in range(40)}), list[int]()
    optimizer = MeZO(model, lr=1e-3, moments="momentum", scaling=scaling)
    many, alone = kernels.noise_many, kernels.noise

    def counted_many(law: Any, key: Key, sizes: Any, *rest: Any) -> Any:
        drawn.append(sum(count for _, count in sizes))
        return many(law, key, sizes, *rest)

    def counted(law: Any, key: Key, name: str, start: int, stop: int, *rest: Any) -> Any:
        drawn.append(stop - start)
        return alone(law, key, name, start, stop, *rest)

    monkeypatch.setattr(kernels, "noise_many", counted_many)
    monkeypatch.setattr(kernels, "noise", counted)
    for step in range(9):
        drawn.clear()
        optimizer.step(of(lambda joined: joined.cos().sum()), {})
        assert sum(drawn) <= (step + 1) * 40 * 32 * 1.1, step


def test_the_history_follows_the_decay() -> None:
    """66 steps for 0.9: the 67th would weigh less than a thousandth; one without memory."""
    assert PastProbes("momentum", 0.9, 0.999).history == 66 and 0.9**65 > 1e-3 > 0.9**66
    assert PastProbes("momentum", 0.0, 0.999).history == 1
    assert PastProbes("momentum", 0.5, 0.999).history == 10
    assert PastProbes("adam", 0.0, 0.999).history == PastProbes("adam", 0.9, 0.999).history == 66


def test_without_a_first_moment_steps_are_no_signs() -> None:
    """beta1 0 leaves RMSProp: the slope over the root of a mean of squares, not over its own size."""
    model, lr = start(), 1e-3
    stored, squares = flat(model), list[Tensor]()
    optimizer = MeZO(model, lr=lr, eps=1e-2, moments="adam", beta1=0.0, beta2=0.9, seed=SEED, lanes="off")
    for step in range(6):
        z = z_of(step)
        gradient = slope_of(stored, z) * z
        squares.insert(0, gradient.square())
        powers = [0.9**age for age in range(len(squares))]
        mean = sum(w * g for w, g in zip(powers, squares, strict=True)) / sum(powers)
        stored = stored - lr * gradient / (mean.sqrt() + 1e-8)  # type: ignore[union-attr]
        optimizer.step(of(function), {})
        torch.testing.assert_close(flat(model), stored, rtol=0, atol=1e-9)


@pytest.mark.parametrize("given", [None, {"a": 3.0, "b": 1.0}])
@pytest.mark.parametrize("scaling", ["variance", "expectation"])
def test_rescaled_directions(scaling: Any, given: dict[str, float] | None) -> None:
    """theta +- eps z / d; then c d z or c z; d from the weights' norms or given, over its mean, to six digits; 1e-9."""
    model, lr, eps = start(), 0.01, 1e-2
    theta = flat(model)
    norms = [theta[:30].norm(), theta[30:].norm()] if given is None else [given["a"], given["b"]]
    scales = [float(f"{2 * float(norm) / float(sum(norms)):.6g}") for norm in norms]
    d = torch.tensor([scales[0]] * 30 + [scales[1]] * 7, dtype=torch.float64)
    optimizer = MeZO(model, lr=lr, eps=eps, scaling=scaling, scales=given, seed=SEED)
    for step in range(4):
        z = z_of(step)
        slope = slope_of(theta, z / d, eps)
        theta = theta - lr * slope * (d * z if scaling == "variance" else z)
        optimizer.step(of(function), {})
        torch.testing.assert_close(flat(model), theta, rtol=0, atol=1e-9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    later = MeZO(model, scaling=scaling)
    later.load_state_dict(optimizer.state_dict())
    assert [float(d) for d in later.direction.state().values()] == scales


@pytest.mark.parametrize("moments", ["momentum", "adam"])
def test_past_probes_are_rescaled_too(moments: Any) -> None:
    """Momentum and Adam of c d z, where the variance is modified; 1e-9."""
    model, lr, eps = start(), 0.002, 1e-2
    theta, scales = flat(model), {"a": 0.5, "b": 1.5}
    d = torch.tensor([0.5] * 30 + [1.5] * 7, dtype=torch.float64)
    gradients: list[Tensor] = []
    options: dict[str, Any] = {"beta1": 0.9, "beta2": 0.99, "scaling": "variance", "scales": scales}
    optimizer = MeZO(model, lr=lr, eps=eps, moments=moments, seed=SEED, **options)
    for step in range(5):
        z = z_of(step)
        gradients.insert(0, slope_of(theta, z / d, eps) * d * z)
        first, second = ([beta**age for age in range(len(gradients))] for beta in (0.9, 0.99))
        sums = [sum(w * g**k for w, g in zip(p, gradients, strict=True)) for p, k in ((first, 1), (second, 2))]
        if moments == "momentum":
            theta = theta - lr * sums[0]
        else:
            theta = theta - lr * (sums[0] / sum(first)) / ((sums[1] / sum(second)).sqrt() + 1e-8)  # type: ignore[union-attr]
        optimizer.step(of(function), {})
        torch.testing.assert_close(flat(model), theta, rtol=0, atol=1e-9)


def test_feedback_remembers_the_last_loss_whether_it_rose_or_fell() -> None:
    """Losses of 3, 1, 2, 5: each against the one before it."""
    estimator = ResidualFeedback(0.1)
    for step, (value, before) in enumerate([(3.0, 3.0), (1.0, 3.0), (2.0, 1.0), (5.0, 2.0)]):
        assert estimator.probes(0, step, [value])[0].coef == pytest.approx((value - before) / 0.1)
        estimator.observe(0, step, [value])


def test_the_modified_variance_is_unbiased_and_the_expectation_is_not() -> None:
    """Mean of `c gain z / d` on a linear loss: the gradient, or d^-1 times it; 1,200 steps, 4.5 standard errors."""
    gradient = normals(8, 3, torch.float64)
    scales = {"a": 1.0, "b": 3.0}
    d = torch.tensor([0.5] * 4 + [1.5] * 4, dtype=torch.float64)
    for scaling, expected in (("variance", gradient), ("expectation", gradient / d)):
        model = Weights(a=normals((2, 2), 1, torch.float64), b=normals(4, 2, torch.float64))
        optimizer = MeZO(model, lr=0.0, eps=0.5, scaling=scaling, scales=scales, lanes="off")  # type: ignore[arg-type]
        found = []
        for step in range(1200):
            optimizer.step(of(lambda theta: gradient @ theta), {})
            parts = [
                optimizer.direction.gain(t, Key(0, step)) * optimizer.direction.block(t, Key(0, step), 0, 4).double()
                for t in optimizer.perturber.targets()
            ]
            found.append(optimizer.probes[0].coef * torch.cat(parts))
        stacked = torch.stack(found)
        bound = 4.5 * stacked.std(0) / len(found) ** 0.5
        assert bool(((stacked.mean(0) - expected).abs() <= bound).all()), scaling
        assert float(bound.max()) < float(gradient.norm())


def test_gradient_norms_are_measured_tensor_by_tensor() -> None:
    """|z . grad| for each tensor alone: its square averages to the squared norm; the model keeps its bits."""
    gradient = normals(37, 3, torch.float64)
    model = start()
    before = weights(model)
    found: dict[str, list[float]] = {"a": [], "b": []}
    for seed in range(400):
        norms = gradient_norms(model, of(lambda theta: gradient @ theta), {"row": torch.arange(2)}, seed=seed)
        for name, norm in norms.items():
            found[name].append(norm**2)
    for name, part in (("a", gradient[:30]), ("b", gradient[30:])):
        squares = torch.tensor(found[name])
        assert abs(float(squares.mean()) - float(part @ part)) < 4.5 * float(squares.std()) / 20
    assert same_bits(weights(model), before)
    MeZO(model, scaling="variance", scales=norms).step(of(function), {})


@pytest.mark.parametrize(
    "options",
    [
        {"queries": 3, "samples_over": 4},
        {"feedback": "residual"},
        {"moments": "momentum", "history": 3, "queries": 2},
        {"moments": "adam", "blocks": "cycle"},
        {"moments": "momentum", "blocks": "random:0.34"},
        {"scaling": "variance"},
        {"scaling": "expectation", "queries": 2},
        {"feedback": "residual", "moments": "momentum", "scaling": "variance", "blocks": "cycle"},
    ],
)
def test_variants_replay_to_the_bit(options: dict[str, Any]) -> None:
    """From header and records alone, in bfloat16; evaluating changes no bit, and lr 0 none either, minus zeros too."""
    model, base, records = tiny("llama", torch.bfloat16), tiny("llama", torch.bfloat16), []
    optimizer = MeZO(model, lr=1e-3, eps=1e-2, seed=SEED, **options)
    optimizer.record = records.append
    for step in range(7):
        optimizer.param_groups[0]["lr"] = 1e-3 * (step != 4)
        before = weights(model)
        optimizer.estimate(loss, batch_for("llama"))
        assert same_bits(weights(model), before)
        optimizer.step()
        assert same_bits(weights(model), before) == (step == 4 or (step == 0 and "feedback" in options)), step
    other = rebuild(optimizer.header(), base)
    for record in records:
        other.replay(record)
    assert same_bits(weights(base), weights(model))


@pytest.mark.parametrize(
    "wrong",
    [
        {"samples_over": 0},
        {"feedback": "residual", "queries": 2},
        {"feedback": "residual", "samples_over": 3},
        {"feedback": "residual", "eps": 0.0},
        {"moments": "adam", "beta1": 1.0},
        {"moments": "adam", "beta2": -0.1},
        {"moments": "momentum", "history": 0},
        {"scales": {"a": 1.0}},
        {"scaling": "variance", "scales": {"a": 1.0}},
        {"scaling": "variance", "scales": {"a": 1.0, "b": -1.0}},
    ],
)
def test_impossible_arguments_are_refused(wrong: dict[str, Any]) -> None:
    """Before anything is evaluated, with a remedy."""
    with pytest.raises(ConfigError, match="Remedy"):
        MeZO(start(), **wrong)
