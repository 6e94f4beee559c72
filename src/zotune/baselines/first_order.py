"""First-order fine-tuning of the same session, for comparison: AdamW or SGD through transformers' own Trainer.

Objective, encoded examples, batch size, scope and evaluation are those of the zeroth-order run; only the update comes
from a gradient. What a Trainer does by default stays as it is: the rows are shuffled anew in each epoch, gradients are
clipped to norm 1, the model is in training mode.
"""

from __future__ import annotations

import math
import random
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, final

import numpy as np
import torch
from torch import Tensor, nn

from zotune.adapters import added_by, is_adapter
from zotune.errors import ConfigError, NonFiniteLoss, UserError
from zotune.evaluate import Evaluation
from zotune.load import quiet
from zotune.machine import peak_memory_bytes
from zotune.scope import select
from zotune.session import Session
from zotune.watch import Quiet, Watch

if TYPE_CHECKING:
    from transformers import TrainingArguments

Optimizer = Literal["adamw", "sgd"]

# Within the grids of MeZO's experiments (arXiv 2305.17333, tables 14 to 16); SGD on adapters is not in them.
RATES: Mapping[Optimizer, Mapping[str | None, float]] = {
    "adamw": {None: 1e-5, "lora": 3e-4, "prefix": 3e-2, "prompt": 3e-2, "head": 1e-4},
    "sgd": {None: 1e-3, "lora": 1e-1, "prefix": 1e-1, "prompt": 1e-1, "head": 1e-2},
}
_NAMES: Mapping[Optimizer, str] = {"adamw": "adamw_torch", "sgd": "sgd"}
# As many passes over the training rows as MeZO's experiments give to fine-tuning with gradients.
EPOCHS = 5


@final
@dataclass(frozen=True, slots=True)
class FirstOrder:
    """evaluation: of the trained model on the held-out rows. seconds: of the training alone. trained: how many weights.

    forwards: micro-batches that went through the model, each with a backward pass too. peak_memory_bytes: of this
    process since it began (on a CUDA device, of what torch allocated there).
    """

    evaluation: Evaluation
    steps: int
    lr: float
    trained: int
    forwards: int
    seconds: float
    peak_memory_bytes: int


def first_order(
    session: Session,
    optimizer: Optimizer = "adamw",
    lr: float | None = None,
    steps: int | None = None,
    watch: Watch | None = None,
) -> FirstOrder:
    """Train the session's model in place on its training rows, with gradients, and evaluate it on its held-out rows.

    The config gives scope (`full`, `lora`, ...), batch size, micro-batches, seed, weight decay and schedule. lr: by
    default `RATES`; steps: by default what `EPOCHS` passes over the rows take, at most the config's. Weights that are
    trained become fp32 (where the scope adds an adapter: the adapter's). Nothing is written, no random state is moved.
    Raises ConfigError for a session without rows, an objective without a gradient, and several GPUs in sight;
    UserError without accelerate; NonFiniteLoss.
    """
    if optimizer not in RATES:
        raise ConfigError(f"unknown optimizer {optimizer!r}. Remedy: use one of {', '.join(RATES)}.")
    if not session.examples or not session.eval_examples:
        raise ConfigError("fine-tuning needs training and held-out rows. Remedy: --train FILE and --eval FILE.")
    _check(session)
    config = session.config
    lr = RATES[optimizer][added_by(config.scope)] if lr is None else lr
    steps = default_steps(session) if steps is None else steps
    trained = _prepare(session)
    with tempfile.TemporaryDirectory() as folder, _random_state_kept(), quiet():
        trainer = _trainer(session, _arguments(session, folder, optimizer, lr, steps), watch or Quiet())
        begun = time.perf_counter()
        if steps:
            trainer.train()
        seconds = time.perf_counter() - begun
    session.model.eval()
    session.model.zero_grad(set_to_none=True)
    evaluation = session.evaluate()
    assert evaluation is not None
    peak = peak_memory_bytes(session.device)
    return FirstOrder(evaluation, steps, lr, trained, trainer.forwards, seconds, peak)


def default_steps(session: Session) -> int:
    """Steps of `EPOCHS` passes over the training rows, or the config's where those are fewer."""
    return min(session.config.steps, EPOCHS * math.ceil(len(session.examples) / session.config.batch_size))


def _check(session: Session) -> None:
    try:
        import accelerate  # noqa: F401 - the Trainer needs it, and says so less clearly
    except ImportError:
        raise UserError("fine-tuning with gradients needs accelerate. Remedy: pip install 'zotune[compare]'.") from None
    if session.device.type == "cuda" and (torch.cuda.device_count() > 1 or session.device.index not in (None, 0)):
        raise ConfigError(
            "a Trainer would share its batches among all GPUs in sight. Remedy: show it one, with "
            "CUDA_VISIBLE_DEVICES=0 and --device cuda."
        )


def _prepare(session: Session) -> int:
    """fp32 for what is trained, no gradient for the rest. Returns the number of trained weights."""
    model, scope = session.model, session.config.scope
    chosen = set(select(model, scope))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
        if name in chosen and is_adapter(scope):
            parameter.data = parameter.data.float()
    if not is_adapter(scope):
        model.float()
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _arguments(session: Session, folder: str, optimizer: Optimizer, lr: float, steps: int) -> TrainingArguments:
    from transformers import TrainingArguments

    config, micro = session.config, session.config.micro_batch_size or session.config.batch_size
    kind = "constant_with_warmup" if config.lr_schedule == "constant" and config.warmup_steps else config.lr_schedule
    return TrainingArguments(
        output_dir=folder,
        optim=_NAMES[optimizer],
        learning_rate=lr,
        weight_decay=config.weight_decay,
        lr_scheduler_type=kind,
        warmup_steps=config.warmup_steps,
        max_steps=steps or 1,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=config.batch_size // micro,
        seed=config.seed % 2**32,  # numpy's seeds have 32 bits
        use_cpu=session.device.type == "cpu",
        dataloader_pin_memory=session.device.type != "cpu",
        remove_unused_columns=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def _trainer(session: Session, arguments: TrainingArguments, watch: Watch) -> Any:
    """transformers' Trainer with the session's objective as its loss: it knows nothing of prompts and candidates."""
    from transformers import PrinterCallback, Trainer, TrainerCallback

    objective = session.objective

    @final
    class OfSession(Trainer):
        def __init__(self, **given: Any) -> None:
            super().__init__(**given)
            self.model_accepts_loss_kwargs = False  # so that micro-batches of a step are averaged
            self.forwards, self.losses = 0, list[float]()

        def compute_loss(
            self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Tensor:
            loss = objective(model, inputs).mean()
            if not loss.requires_grad:
                raise ConfigError(
                    f"{objective.says or type(objective).__name__} has no gradient to fine-tune with. Remedy: leave "
                    "this baseline out, or train on the likelihood."
                )
            self.forwards += 1
            self.losses.append(float(loss.detach()))
            if not math.isfinite(self.losses[-1]):
                raise NonFiniteLoss(
                    f"the loss of step {self.state.global_step} is {self.losses[-1]}. Remedy: a smaller learning rate."
                )
            return loss

    @final
    class Told(TrainerCallback):
        """Tells the watcher of each step."""

        begun = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.begun = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            loss = sum(trainer.losses) / len(trainer.losses)
            trainer.losses.clear()
            watch.step(state.global_step, args.max_steps, loss, time.perf_counter() - self.begun, {})

    trainer = OfSession(
        model=session.model,
        args=arguments,
        train_dataset=session.examples,
        data_collator=objective.collate,
        callbacks=[Told()],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """A Trainer seeds the generators of Python, numpy and torch: afterwards they are what they were."""
    python, legacy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)
