"""The inputs of a product are seen, whichever way a layer writes it, and on which side of the weight they are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from tests import models
from tests.models import batch_for, loss, normals, tiny
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from zotune.direction import Dense
from zotune.estimate import Point
from zotune.inputs import Inputs
from zotune.low_rank import LowRank
from zotune.noise import Key
from zotune.perturb import Perturber

one_thread = models.one_thread
W = nn.Parameter(normals((4, 3), 1))
X, Y = normals((2, 5, 3), 2), normals((2, 5, 4), 3)  # of x @ W', of y @ W
FLAT = Y.view(-1, 4)

Product = Callable[[], Tensor]
PLAIN: list[Product] = [
    lambda: F.linear(X, W),
    lambda: F.linear(input=X, weight=W, bias=torch.zeros(4)),
    lambda: X @ W.T,
    lambda: torch.matmul(X, W.mT),
    lambda: X.matmul(W.transpose(0, 1)),
    lambda: torch.mm(X.view(-1, 3), W.t()),
    lambda: torch.addmm(torch.zeros(4), X.view(-1, 3), W.t()),
]
TRANSPOSED: list[Product] = [
    lambda: Y @ W,
    lambda: torch.matmul(Y, other=W),
    lambda: FLAT.mm(W),
    lambda: torch.addmm(torch.zeros(3), FLAT, W),
    lambda: torch.addmm(torch.zeros(3), mat1=FLAT, mat2=W),
    lambda: F.linear(Y, W.T),
]


def seen(run: Callable[[], object], **weights: Tensor) -> list[tuple[str, Tensor, bool]]:
    """What is shown of some weights in inference mode, as a step looks."""
    found: list[tuple[str, Tensor, bool]] = []
    with torch.inference_mode(), Inputs(weights, lambda *shown: found.append(shown)) as inputs:
        run()
    assert inputs.shown == {name for name, _, _ in found}
    return found


@pytest.mark.parametrize(("products", "x", "transposed"), [(PLAIN, X, False), (TRANSPOSED, Y, True)])
def test_every_way_to_write_a_product(products: list[Product], x: Tensor, transposed: bool) -> None:
    """By operator, function or method, by position or keyword, with the weight or a view of it: rows of tokens."""
    for product in products:
        (name, shown, turned), *more = seen(product, w=W)
        assert (name, turned, more) == ("w", transposed, [])
        assert torch.equal(shown, x.view(-1, x.shape[-1]))


def test_what_is_no_product_with_the_whole_weight_shows_nothing() -> None:
    """A table, a convolution, a vector, a part of the weight, the weight as the activation, and another weight."""
    kernel, vector, other = nn.Parameter(normals((4, 3, 1), 4)), nn.Parameter(normals(3, 5)), nn.Parameter(W.detach())

    def run() -> None:
        F.embedding(torch.tensor([1, 2]), W)
        F.conv1d(X.mT, kernel)
        _ = X @ vector, F.linear(X, W[:2]), W @ X[0].T, X @ other.T

    assert seen(run, w=W, kernel=kernel, vector=vector) == []


def test_the_first_inputs_of_a_weight_are_shown() -> None:
    """Once in a forward, whatever comes later; the products themselves are what they are."""
    products: list[Tensor] = []
    ((_, shown, _),) = seen(lambda: products.extend((F.linear(X, W), F.linear(2 * X, W), Y @ W)), w=W)
    assert torch.equal(shown, X.view(-1, 3)) and torch.equal(products[1], F.linear(2 * X, W))


def test_layers_of_both_kinds_and_whole_models() -> None:
    """Conv1D of transformers is x @ W; of GPT-2 every matrix but the table of positions is seen, of Llama all but none.

    The table of tokens is the output head too, which is a product.
    """
    layer = Conv1D(3, 4)
    ((_, shown, transposed),) = seen(lambda: layer(Y), w=layer.weight)
    assert transposed and torch.equal(shown, FLAT)
    for family, unseen in (("gpt2", {"transformer.wpe.weight"}), ("llama", {"model.embed_tokens.weight"})):
        model = tiny(family)
        named = {name: p for name, p in model.named_parameters() if p.dim() == 2}
        found = seen(lambda model=model, family=family: loss(model, batch_for(family)), **named)
        assert set(named) - {name for name, _, _ in found} == unseen
        assert {name for name, _, turned in found if turned} == {name for name in named if ".c_" in name}


def test_a_weight_with_a_pending_update_is_seen_too() -> None:
    """A stand-in is in its place then."""
    layer, shown = nn.Linear(3, 4), []
    perturber = Perturber(layer, ["weight"], Dense())
    thin = LowRank(1, 1)
    thin.prepare(perturber.targets())
    factors = thin.factors(perturber.targets()[0], Key(0, 0))
    assert factors is not None
    perturber.pending["weight"] = factors
    perturber.direction.see = lambda *given: shown.append(given)  # type: ignore[method-assign]
    with torch.no_grad(), perturber.at(Point(Key(0, 0), 0.0)), perturber.watched(Key(0, 0)) as inputs:
        layer(X)
    assert inputs.shown == {"weight"} and torch.equal(shown[0][2], X.view(-1, 3)) and shown[0][3] is False
