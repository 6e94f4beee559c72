"""transformers' own Trainer with one method overridden: a step of training is forward passes.

Everything else (data, schedules, gradient accumulation, callbacks, logging, checkpoints, evaluation) is transformers'.

    optimizer = zotune.MeZO(model, lr=1e-6, eps=1e-3, scope="full")
    zotune.hf.Trainer(model=model, args=args, train_dataset=rows, optimizers=(optimizer, None)).train()

Differs from transformers in: the model is in eval mode while it trains, so dropout does not separate the two sides of a
direction; there are no gradients, so what works on them (clipping, fp16 loss scaling) is not there. Under torchrun each
process has the rows that transformers gives it, the losses of all make each step, and weights stay equal.
"""

from __future__ import annotations

from typing import Any, final

import torch
import transformers
from torch import Tensor, nn

from zotune.distributed.own import OwnBatches
from zotune.errors import ConfigError
from zotune.objective.model_kind import model_kind
from zotune.optimizer import ZerothOrder


@final
class Trainer(transformers.Trainer):
    """The arguments are those of `transformers.Trainer`; `optimizers` holds a zotune optimizer on `model`, and a
    scheduler or None.

    The loss is `compute_loss` (or `compute_loss_func`), a mean over a micro-batch; micro-batches of one step count by
    their label tokens, where there are labels. A step without a label token moves no weight. Raises ConfigError without
    a zotune optimizer, for one on another model, that needs losses per example or whose processes expect all rows, and
    for `fp16`.
    """

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        optimizer = self.optimizer
        if not isinstance(optimizer, ZerothOrder):
            raise ConfigError(
                "zotune.hf.Trainer needs a zotune optimizer. Remedy: optimizers=(zotune.MeZO(model, lr=1e-6), None)."
            )
        if optimizer.model is not self.model:
            raise ConfigError("the optimizer was built on another model. Remedy: build it on the model that is given.")
        if optimizer.estimator.per_example:
            raise ConfigError(
                f"{optimizer.method} needs a loss for each example, a Trainer has their mean. Remedy: another method."
            )
        if self.args.fp16:
            raise ConfigError("fp16 scales gradients, of which there are none. Remedy: load the model in float16.")
        if self.args.world_size > 1:
            self._share(optimizer)

    def _share(self, optimizer: ZerothOrder) -> None:
        """transformers gives each process rows of its own."""
        if optimizer.parallel is None:
            optimizer.share(OwnBatches())
        elif not optimizer.parallel.own:
            raise ConfigError(
                "a Trainer gives each process its own rows, and the optimizer's processes expect all of them. Remedy: "
                "leave parallel out."
            )

    def optimizer_of(self) -> ZerothOrder:
        """zotune's own: accelerate wraps it."""
        wrapped: Any = self.optimizer
        found: ZerothOrder = getattr(wrapped, "optimizer", wrapped)
        return found

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """The losses of one micro-batch at every point of the step; transformers then calls `optimizer.step()`.

        Returns their mean, (), as transformers wants it: micro-batches of a step sum to the loss of the step.
        """
        if self.args.world_size > 1:
            model = self.optimizer_of().model  # what is around it for gradients makes forwards wait for each other
        model.eval()
        inputs = self._prepare_inputs(inputs)
        optimizer = self.optimizer_of()
        tokens = _scored(model, inputs.get("labels"))

        def loss() -> Tensor:
            with self.compute_loss_context_manager():
                found: Any = self.compute_loss(model, dict(inputs))
            return torch.as_tensor(found).mean()  # of several GPUs

        mean = optimizer.estimate(loss, weight=tokens)
        if not tokens:  # a mean over none: transformers would log NaN
            return torch.zeros((), device=self.args.device)
        # How the steps of transformers add up what they log.
        shared = 1 / self.current_gradient_accumulation_steps
        if num_items_in_batch is not None and "labels" in inputs:
            shared = tokens / int(num_items_in_batch)
            if self.args.average_tokens_across_devices:  # they are those of all processes, whose means are averaged
                shared *= self.args.world_size
        return torch.tensor(mean * shared, device=self.args.device)


def _scored(model: nn.Module, labels: Tensor | None) -> int:
    """How many labels a micro-batch's mean loss is of: a decoder predicts the next token, so it has no first one."""
    if labels is None:
        return 1
    kept = labels != -100
    try:
        shifted = labels.dim() == 2 and model_kind(model) == "causal"
    except ConfigError:  # a head of another kind: it scores what it is given
        shifted = False
    return int((kept[:, 1:] if shifted else kept).sum())
