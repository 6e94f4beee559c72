"""What is inside a packed layer: codes times scales are its weight, by hand and with the libraries themselves."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests import models
from tests.models import normals, seeded
from torch import Tensor, nn

from zotune.config import TrainConfig
from zotune.errors import ConfigError
from zotune.load import load_model
from zotune.quantised.layers import Around, Blocks4, Codes, Plain, Rows8, codes_of, is_packed, packed_layers

one_thread = models.one_thread
CODES = torch.arange(12, dtype=torch.int8).view(2, 6)
SCALE = torch.tensor([[0.5, 2.0, 1.0], [1.0, 0.25, 4.0]])


class Held:
    """A packed weight as torchao holds it: whole-number codes, scales of groups of two, and zero points or none."""

    def __init__(self, **other: Any) -> None:
        self.qdata, self.scale, self.zero_point = CODES.clone(), SCALE.clone(), None
        self.shape, self.dtype = self.qdata.shape, torch.float32
        vars(self).update(other)


class Layer(nn.Module):
    """A linear layer around anything that stands for its weight."""

    def __init__(self, weight: Any) -> None:
        super().__init__()
        self.held = [weight]

    @property
    def weight(self) -> Any:
        return self.held[0]


def whole(codes: Codes) -> Tensor:
    """The weight that codes and scales make."""
    read = codes.read(0, codes.rows, torch.float32)
    return (read * codes.scale().unsqueeze(-1)).view(codes.rows, codes.columns)


def test_codes_times_scales_by_hand() -> None:
    """Row 1 of the codes is 6 to 11, its groups of two are scaled by 1, 1/4 and 4; zero points come off the codes."""
    codes = codes_of("w", Layer(Held()))
    assert isinstance(codes, Plain) and (codes.rows, codes.columns, codes.integers) == (2, 6, True)
    assert whole(codes).tolist() == [[0, 0.5, 4, 6, 4, 5], [6, 7, 2, 2.25, 40, 44]]
    assert codes.read(1, 2, torch.bfloat16).tolist() == [[[6, 7], [8, 9], [10, 11]]]
    shifted = codes_of("w", Layer(Held(zero_point=torch.tensor([[1, 2, 3], [0, 8, 10]]))))
    assert shifted.read(0, 2, torch.float32).tolist() == [[[-1, 0], [0, 1], [1, 2]], [[6, 7], [0, 1], [0, 1]]]


def test_scales_are_copies_until_they_are_put_back() -> None:
    """What is changed outside changes nothing inside; `put` does, in the library's own tensor and dtype."""
    held = Held(scale=SCALE.to(torch.bfloat16))
    codes, own = codes_of("w", Layer(held)), held.scale
    scale = codes.scale()
    scale *= 2
    assert scale.dtype == torch.float32 and torch.equal(codes.scale(), SCALE)
    codes.put(scale)
    assert held.scale is own and torch.equal(own.float(), 2 * SCALE)


@pytest.mark.parametrize(
    "other",
    [
        {"scale": torch.ones(2, 4)},  # groups that do not divide a row
        {"scale": torch.ones(2)},
        {"qdata": CODES.view(4, 3)},
        {"act_quant_kwargs": {}},  # a layout that rounds activations too
    ],
)
def test_a_layout_without_groups_inside_rows_is_refused(other: dict[str, Any]) -> None:
    """Its scales cannot be told apart; the layer is named, with a remedy."""
    with pytest.raises(
        ConfigError, match=r"the scales of a.b \(Held, \(2, 6\)\) do not .* Remedy: --quantize int8 on the unpacked"
    ):
        codes_of("a.b", Layer(Held(**other)))


def test_scales_that_are_packed_themselves_are_refused() -> None:
    """Double quantisation: another packing is the remedy, which a packed checkpoint cannot be given."""
    held: Any = Held(qdata=CODES.view(4, 3))
    held.quant_state = SimpleNamespace(nested=True)
    with pytest.raises(ConfigError, match="the scales of a.b are packed themselves.*Remedy: a checkpoint"):
        codes_of("a.b", Layer(held))


def test_scales_of_8_bit_rows_move_with_the_first_forward() -> None:
    """absmax / 127 of each row, in the weight at first and in the layer's state from the first forward on."""
    weight = type("Int8Params", (), {"dtype": torch.int8, "shape": CODES.shape, "data": CODES})()
    weight.SCB = torch.tensor([127.0, 254.0])
    layer: Any = Layer(weight)
    layer.state = SimpleNamespace(SCB=None)
    codes = codes_of("w", layer)
    assert isinstance(codes, Rows8) and codes.scale().tolist() == [[1.0], [2.0]] and codes.integers
    layer.state.SCB, weight.SCB = weight.SCB, None
    codes.put(torch.tensor([[3.0], [1.0]]))
    assert layer.state.SCB.tolist() == [381.0, 127.0] and codes.read(1, 2, torch.float32).shape == (1, 1, 6)
    assert not Rows8.fits(nn.Linear(2, 2).weight) and not Blocks4.fits(nn.Linear(2, 2).weight)


def test_a_plain_layer_is_not_packed_and_can_stand_inside_another() -> None:
    """Weights that can be read are none of a library's; what stands around a layer answers for its weight and bias."""

    class Twice(Around):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * self.base(x)

    model: Any = seeded(lambda: nn.Sequential(nn.Linear(3, 2), nn.ReLU()))
    assert packed_layers(model) == {} and not is_packed(nn.ReLU())
    around = Twice(model[0])
    assert around.weight is model[0].weight and around.bias is model[0].bias
    x = normals((4, 3), 1)
    assert (
        torch.equal(around(x), 2 * model[0](x)) and [name for name, _ in around.named_parameters()][0] == "base.weight"
    )


@pytest.mark.parametrize("kind", ["int8", "int4", "nf4"])
def test_codes_and_scales_are_the_librarys_weight(packed: Callable[..., TrainConfig], kind: str) -> None:
    """The layer's product with the identity is its weight: the codes of all rows, read three at a time."""
    model = load_model(packed(kind, scope="norms"))
    layers = packed_layers(model)
    assert len(layers) == 2 * 7 and all(is_packed(layer) for layer in layers.values())
    name, layer = next((name, layer) for name, layer in layers.items() if name.endswith("down_proj"))
    codes = codes_of(name, layer)
    assert (codes.rows, codes.columns) == (64, 128) and codes.integers == (kind != "nf4")
    parts = torch.cat([codes.read(row, min(row + 3, 64), torch.float32) for row in range(0, 64, 3)])
    assert torch.equal(parts, codes.read(0, 64, torch.float32))
    if codes.integers:
        assert torch.equal(parts, parts.round()) and float(parts.abs().max()) < 256
    with torch.inference_mode():
        product = layer(torch.eye(128)).t()
    torch.testing.assert_close(whole(codes), product, rtol=1e-5, atol=1e-6)
    codes.put(codes.scale() * 2)
    with torch.inference_mode():
        torch.testing.assert_close(layer(torch.eye(128)).t(), 2 * product, rtol=1e-5, atol=1e-6)
