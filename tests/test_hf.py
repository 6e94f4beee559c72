"""transformers' Trainer, trained by forward passes: a plain loop's weights, with its own machinery around it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tests import models
from tests.models import same_bits, tiny, weights
from torch import nn

import zotune
from zotune.errors import ConfigError
from zotune.hf import Trainer

one_thread = models.one_thread
# transformers and accelerate on their own terms: pinned memory without a GPU, attributes being renamed.
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
]


def rows(count: int = 8) -> list[dict[str, Any]]:
    """Sentences of one length with labels; half of each second one is not scored."""
    ids = torch.randint(3, 40, (count, 6), generator=torch.Generator().manual_seed(2))
    labels = ids.clone()
    labels[1::2, :3] = -100
    return [{"input_ids": row, "labels": label} for row, label in zip(ids, labels, strict=True)]


def arguments(folder: Path, **more: Any) -> transformers.TrainingArguments:
    usual = {"max_steps": 4, "per_device_train_batch_size": 2, "lr_scheduler_type": "linear", "logging_steps": 1}
    quiet = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "seed": 3}
    return transformers.TrainingArguments(output_dir=str(folder), **{**usual, **quiet, **more})


class InOrder(transformers.TrainerCallback):
    """Counts what a callback is told."""

    def __init__(self) -> None:
        self.steps = 0

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.steps += 1


def trainer(model: nn.Module, folder: Path, method: str = "mezo", callbacks: Any = None, **more: Any) -> Trainer:
    optimizer = zotune.METHODS[method].build(model, lr=1e-2, eps=1e-2, seed=5)
    return Trainer(
        model=model,
        args=arguments(folder, **more),
        train_dataset=rows(),
        optimizers=(optimizer, None),
        callbacks=callbacks,
    )


@pytest.mark.parametrize("accumulation", [1, 2])
def test_it_is_a_plain_loop(tmp_path: Path, accumulation: int) -> None:
    """Four steps with a falling rate equal a loop of our own over the same batches, bit for bit; callbacks see them."""
    model, seen = tiny("llama"), InOrder()
    one = trainer(model, tmp_path, callbacks=[seen], gradient_accumulation_steps=accumulation)
    batches = list(one.get_train_dataloader())  # the order is a function of the seed
    one.train()
    assert seen.steps == one.state.global_step == 4
    plain = tiny("llama")
    optimizer = zotune.MeZO(plain, lr=1e-2, eps=1e-2, seed=5)
    order = [batch for _ in range(4) for batch in batches] if accumulation == 2 else batches
    logged = []
    for step in range(4):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / 4)
        part = order[step * accumulation : (step + 1) * accumulation]
        for batch in part:
            given = {key: value for key, value in batch.items()}
            count = int((given["labels"][:, 1:] != -100).sum())
            optimizer.estimate(lambda given=given: plain(**given).loss, weight=count)
        logged.append(optimizer.step())
    if accumulation == 1:
        assert same_bits(weights(model), weights(plain))
        found = [row["loss"] for row in one.state.log_history if "loss" in row]
        assert found == pytest.approx(logged, abs=1e-4)
    assert not same_bits(weights(model), weights(tiny("llama")))


def test_accumulation_equals_one_large_batch(tmp_path: Path) -> None:
    """Two micro-batches of two count by their tokens: the same weights as one batch of four, to rounding."""
    ends = []
    for size, accumulation in ((4, 1), (2, 2)):
        model = tiny("llama", torch.float64)
        one = trainer(model, tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=accumulation)
        one.train()
        ends.append(weights(model))
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=0, atol=1e-5)  # transformers computes the loss in float32


@pytest.mark.parametrize("accumulation", [1, 2])
def test_batches_without_labels_are_passed_over(tmp_path: Path, accumulation: int) -> None:
    """Seven of eight rows have no label: one micro-batch alone moves the weights, and every step is counted."""
    model, steps = tiny("llama"), 4 // accumulation
    one = trainer(model, tmp_path, max_steps=steps, gradient_accumulation_steps=accumulation)
    for row in one.train_dataset[1:]:
        row["labels"] = torch.full((6,), -100)
    batches = list(one.get_train_dataloader())
    one.train()
    assert one.state.global_step == steps
    logged = [row["loss"] for row in one.state.log_history if "loss" in row]
    assert len(logged) == steps and sorted(logged)[-2:] == [0, pytest.approx(3.7, abs=0.5)]
    plain = tiny("llama")
    optimizer = zotune.MeZO(plain, lr=1e-2, eps=1e-2, seed=5)
    (moving,) = (i for i, batch in enumerate(batches) if (batch["labels"] != -100).any())
    for _ in range(moving // accumulation):
        optimizer.skip()
    optimizer.param_groups[0]["lr"] = 1e-2 * (1 - optimizer.steps / steps)
    optimizer.step(lambda: plain(**batches[moving]).loss)
    assert same_bits(weights(model), weights(plain))


def test_a_checkpoint_continues(tmp_path: Path) -> None:
    """Saved by transformers after two of four steps and resumed by it: the weights of four steps in one go."""
    whole = tiny("llama")
    trainer(whole, tmp_path / "whole", method="lozo").train()
    first = tiny("llama")
    trainer(first, tmp_path / "cut", method="lozo", save_strategy="steps", save_steps=2).train()
    again = tiny("llama", seed=1)
    one = trainer(again, tmp_path / "cut", method="lozo")
    one.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-2"))
    assert one.state.global_step == 4
    assert same_bits(weights(again), weights(whole))


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    """No optimizer, an optimizer on another model, a method that needs losses per example."""
    model, other = tiny("llama"), tiny("llama")
    args = arguments(tmp_path)
    for optimizer, said in (
        (None, "needs a zotune optimizer.*Remedy"),
        (zotune.MeZO(other), "on another model. Remedy"),
        (zotune.GRZO(model), "grzo needs a loss for each example.*Remedy"),
    ):
        with pytest.raises(ConfigError, match=said):
            Trainer(model=model, args=args, train_dataset=rows(), optimizers=(optimizer, None))
