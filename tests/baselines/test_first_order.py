"""Fine-tuning with gradients: the update is the optimizer's on the session's own loss, and nothing else changes."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.models import one_thread as one_thread  # noqa: PLC0414 - a fixture of this module too

from zotune.baselines import first_order
from zotune.baselines.first_order import RATES, default_steps
from zotune.config import TrainConfig
from zotune.errors import ConfigError, NonFiniteLoss, UserError
from zotune.objective.base import to_device
from zotune.session import Session

Config = Callable[..., TrainConfig]
# transformers and accelerate on their own terms.
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def gradient_loop(session: Session, kind: str, lr: float, steps: int) -> dict[str, torch.Tensor]:
    """The weights after `steps` steps on all training rows at once: rate falling to 0, gradients clipped to norm 1."""
    model, batch = session.model, to_device(session.objective.collate(session.examples), "cpu")
    named = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[kind]
    optimizer = named(model.parameters(), lr=lr, weight_decay=0.0)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
        optimizer.zero_grad()
        session.objective(model, batch).mean().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return {name: value.detach() for name, value in model.named_parameters()}


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_it_is_the_optimizer_on_the_sessions_loss(config: Config, kind: Any) -> None:
    """Micro-batches of eleven of 22 rows, so that their order does not matter: a loop written out ends there too."""
    settings = config(batch_size=22, micro_batch_size=11, lr_schedule="linear", steps=3)
    session, plain = Session(settings), Session(settings)
    found = first_order(session, kind, lr=1e-2)
    want = gradient_loop(plain, kind, 1e-2, 3)
    assert (found.steps, found.forwards, found.lr) == (3, 6, 1e-2)
    assert found.trained == sum(p.numel() for p in plain.model.parameters())
    off = [(value.detach() - want[name]).abs() for name, value in session.model.named_parameters()]
    # AdamW moves a weight by its rate whatever the size of the gradient, also of one that is rounding alone.
    assert sum(float(each.sum()) for each in off) / found.trained < (1e-5 if kind == "adamw" else 1e-7)
    expected = plain.evaluate()
    assert expected is not None and found.evaluation.loss == pytest.approx(expected.loss, abs=1e-4)
    assert found.seconds > 0 and found.peak_memory_bytes > 50e6
    assert not session.model.training and all(p.grad is None for p in session.model.parameters())


@pytest.mark.parametrize("scope", ["lora", "norms", "prefix", "head"])
def test_only_the_scope_moves(config: Config, scope: str) -> None:
    """Everything outside keeps its bits; an adapter is trained in fp32 over a base of 16 bits."""
    session = Session(config(scope=scope, dtype="bfloat16" if scope in ("lora", "prefix") else "float32"))
    before = {name: value.detach().clone() for name, value in session.model.named_parameters()}
    found = first_order(session, "adamw", lr=1e-2, steps=2)
    moved = {name for name, value in session.model.named_parameters() if not torch.equal(value.detach(), before[name])}
    trained = {name: value for name, value in session.model.named_parameters() if value.requires_grad}
    assert moved and moved <= set(trained) and found.trained == sum(value.numel() for value in trained.values())
    assert {value.dtype for value in trained.values()} == {torch.float32} and len(trained) < len(before)
    if scope == "lora":
        kinds = {value.dtype for name, value in session.model.named_parameters() if name not in trained}
        assert kinds == {torch.bfloat16}


def test_it_learns(config: Config, tmp_path: Path) -> None:
    """A label that stands in the text is found, which the untrained model does not."""
    for name, rows in (("train", 40), ("eval", 20)):
        words = [("bad", "good")[i % 2] for i in range(rows)]
        lines = [f'{{"text": "the film was {word}", "label": {i % 2}}}\n' for i, word in enumerate(words)]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    session = Session(config(train=tmp_path / "train.jsonl", eval=tmp_path / "eval.jsonl", steps=40))
    before = session.evaluate()
    found = first_order(session, "adamw", lr=1e-2)
    assert before is not None and before.accuracy is not None and before.accuracy <= 0.5
    assert found.evaluation.accuracy == 1.0 and found.evaluation.loss < 0.1 < before.loss and found.steps == 25


def test_nothing_else_changes(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file is written, and the generators of Python, numpy and torch go on as if nothing had been."""
    monkeypatch.chdir(tmp_path)
    states = (random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist())  # type: ignore[index]
    first_order(Session(config()), "sgd", steps=1)
    after = (random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist())  # type: ignore[index]
    assert after == states and list(tmp_path.iterdir()) == []


def test_steps_and_rates(config: Config) -> None:
    """Five passes over 22 rows in batches of 8 are 15 steps, unless the config has fewer; adapters take more."""
    assert default_steps(Session(config(steps=1000))) == 15 and default_steps(Session(config(steps=7))) == 7
    found = first_order(Session(config(scope="lora", steps=1)))
    assert found.lr == RATES["adamw"]["lora"] > RATES["adamw"][None] and found.steps == 1
    still = Session(config())
    assert first_order(still, steps=0).evaluation == still.evaluate()


def test_refusals(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be trained with gradients is told so, and a loss that is not finite ends it."""
    with pytest.raises(ConfigError, match="accuracy of the best candidates has no gradient.*Remedy"):
        first_order(Session(config(objective="accuracy")))
    with pytest.raises(ConfigError, match="needs training and held-out rows. Remedy"):
        first_order(Session(config(eval=None)))
    with pytest.raises(ConfigError, match="unknown optimizer 'adam'. Remedy"):
        first_order(Session(config()), "adam")  # type: ignore[arg-type]
    with pytest.raises(NonFiniteLoss, match="the loss of step .* is nan. Remedy: a smaller learning rate"):
        first_order(Session(config()), "sgd", lr=1e38)
    session = Session(config())
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(UserError, match="needs accelerate. Remedy: pip install"):
        first_order(session)
