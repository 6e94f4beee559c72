"""One atom of every adapter per step, for every method: what moves, what is replayed, how the adapter is scaled."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests import models
from tests.models import batch_for, loss, same_bits, tiny, train, weights
from torch import nn

from zotune.atoms import Atoms
from zotune.config import TrainConfig
from zotune.errors import ConfigError
from zotune.load import load_model
from zotune.methods import METHODS
from zotune.noise import Key
from zotune.rebuild import rebuild
from zotune.records import StepRecord

# PEFT reads a deprecated property of transformers.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
one_thread = models.one_thread
methods = pytest.mark.parametrize("method", models.METHOD_ROWS)
RANK = 3
REFUSED = {"lozo_m": "made of whole matrices", "zo_muon": "made of whole matrices"}
REFUSED |= dict.fromkeys(("hizoo", "conmezo", "loren"), "learns from every element")


def adapted() -> nn.Module:
    """The tiny llama with LoRA of rank 3 whose B is not zero, so that every weight has a slope."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model: nn.Module = get_peft_model(tiny("llama"), LoraConfig(r=RANK, target_modules=["q_proj", "v_proj"]))  # type: ignore[arg-type]
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.3)
    return model.eval()


def atoms_of(name: str, changed: torch.Tensor) -> set[int]:
    """The atoms that a change of this tensor touches."""
    return set(changed.nonzero()[:, 0 if "lora_A" in name else 1].tolist())


@methods
def test_one_atom_after_the_other(method: str) -> None:
    """Step t changes atom t mod r of every adapter and nothing else; a replay from the journal gives the same bits."""
    model, base, batch = adapted(), adapted(), batch_for("llama")
    if method in REFUSED:
        with pytest.raises(ConfigError, match=f"{REFUSED[method]}.*Remedy"):
            train(method, model, scope="lora", blocks="atoms")
        return
    optimizer, records = train(method, model, lr=0.1, seed=3, scope="lora", blocks="atoms"), list[StepRecord]()
    optimizer.record = records.append
    for step in range(4):
        before = weights(model)
        optimizer.step(loss, batch)
        after = weights(model)
        moved = {name: atoms_of(name, before[name] != after[name]) for name in optimizer.names}
        assert set().union(*moved.values()) <= {step % RANK}, (step, moved)
        assert any(moved.values()) or method == "curvzo"
    assert optimizer.evaluator.mode == "lanes" or len(optimizer.estimator.points(0, 0)) == 1
    if METHODS[method].replayable:
        other = rebuild(optimizer.header(), base)
        for record in records:
            other.replay(record)
        assert same_bits(weights(base), weights(model))


def test_the_exceptions_are_those_that_the_page_names(repository: Path) -> None:
    """docs/methods.md lists the methods that refuse atoms, each for what it learns or moves; SubZero with Adam too."""
    with pytest.raises(ConfigError, match="made of whole matrices"):
        train("subzero", adapted(), scope="lora", blocks="atoms", adam=True)
    page = (repository / "docs" / "methods.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"`(\w+)`", page[page.index("Two kinds refuse atoms") :].partition("\n\n")[0]))
    assert listed & set(METHODS) == {*REFUSED, "subzero"}


def test_rows_are_those_of_the_block() -> None:
    """Asked for by rows or as a whole, z has the same zeros and the same numbers."""
    optimizer = train("mezo", adapted(), scope="lora", blocks="atoms")
    for target in optimizer.perturber.targets():
        rows, columns = target.matrix_shape
        whole = optimizer.direction.block(target, Key(0, 4), 0, rows * columns).view(rows, columns)
        some = torch.tensor([rows - 1, 0])
        assert torch.equal(optimizer.direction.rows(target, Key(0, 4), some), whole[some])
        assert int((whole != 0).sum()) == rows * columns // RANK


def test_a_scope_without_adapters_is_refused() -> None:
    """There are no atoms in a model without LoRA."""
    with pytest.raises(ConfigError, match="no LoRA weights. Remedy: --scope lora"):
        train("mezo", tiny("llama"), blocks="atoms")


def test_the_command_line_scales_by_alpha_times_rank(config: Callable[..., TrainConfig]) -> None:
    """LoRA divides alpha by the rank, atoms multiply it: 4 * 3 and not 4 / 3."""
    for blocks, scaling in ((None, 4 / 3), ("atoms", 12.0)):
        model = load_model(config(scope="lora", lora_rank=3, lora_alpha=4.0, blocks=blocks))
        found = {module.scaling["default"] for module in model.modules() if hasattr(module, "lora_A")}
        assert found and all(abs(value - scaling) < 1e-9 for value in found)


def test_atoms_are_a_direction_of_their_own() -> None:
    """The method's own direction is inside, and lanes are proven on all of it."""
    direction = train("mezo", adapted(), scope="lora", blocks="atoms").direction
    assert isinstance(direction, Atoms) and direction.everywhere() is direction.inner
