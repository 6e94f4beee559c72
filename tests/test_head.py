"""The output head: which parameters it has, and a tied one that gets a table of its own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.models import FAMILIES, one_thread, tiny
from torch import Tensor, nn

from zotune.errors import ConfigError
from zotune.head import head_of, head_parameters, is_tied, untie
from zotune.scope import select

one_thread = one_thread
TIED = [family for family in FAMILIES if family not in ("llama", "qwen3_moe")]


def logits(model: Any) -> Tensor:
    ids = torch.tensor([[3, 5, 8, 2]])
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        found: Tensor = model(input_ids=ids, **more).logits
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_its_parameters_are_the_last_projection(family: str, tmp_path: Path) -> None:
    """Trained alone it changes logits and no embedding; saved and loaded, the logits are the same to the bit."""
    model: Any = tiny(family)
    before = logits(model)
    assert is_tied(model) == (family in TIED)
    if family in TIED:
        with pytest.raises(ConfigError, match="tied to the input embeddings.*Remedy: zotune.head.untie"):
            select(model, "head")
    assert untie(model) is model and not is_tied(model) and torch.equal(logits(model), before)
    names = select(model, "head")
    named = dict(model.named_parameters())
    assert {id(named[name]) for name in names} == {id(p) for p in head_of(model).parameters()}
    assert set(names) == head_parameters(model) and 1 <= len(names) <= 2
    embedded = model.get_input_embeddings().weight.detach().clone()
    with torch.no_grad():
        for name in names:
            named[name].add_(0.1 * torch.ones_like(named[name]).cumsum(0) / len(named[name]))
    assert torch.equal(model.get_input_embeddings().weight, embedded)
    after = logits(model)
    assert not torch.equal(after, before)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(type(model).from_pretrained(tmp_path).eval()), after)


def test_a_model_without_one() -> None:
    """It is told so, with the scope that names parameters."""
    with pytest.raises(ConfigError, match="Linear names no output head. Remedy: --scope regex:PATTERN"):
        select(nn.Linear(2, 2), "head")


class Scaled(nn.Module):
    """Divides its logits only while the head is tied, as the first T5 did."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(9, 4), nn.Linear(4, 9, bias=False)
        self.head.weight = self.table.weight
        text = SimpleNamespace(tie_word_embeddings=True)
        self.config = SimpleNamespace(tie_word_embeddings=True, get_text_config=lambda **_: text, text=text)

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids: Tensor) -> Any:
        scale = 0.5 if self.config.text.tie_word_embeddings else 1.0
        return SimpleNamespace(logits=scale * self.head(self.table(input_ids)))


def test_logits_must_stay() -> None:
    """A model whose forward depends on the tie is refused."""
    with pytest.raises(ConfigError, match="Scaled computes other logits with a head of its own. Remedy"):
        untie(Scaled())
