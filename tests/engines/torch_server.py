"""A server that is no more than the base in torch and dense products of the adapters: what any server must equal."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch.func import functional_call

from zotune.engines.mirror import Mirror
from zotune.engines.server import Answer, Order, Question, Server
from zotune.errors import RunError


@final
class TorchServer(Server):
    """`without`: a layer whose adapter it leaves out, as a faulty server would."""

    def __init__(self, without: str = "") -> None:
        super().__init__()
        self.closed, self.without = False, without
        self.followed = 0  # bytes of records
        self.asked = 0  # sequences

    def _start(self, order: Order) -> None:
        from transformers import AutoModelForCausalLM

        self.order = order
        self.model = AutoModelForCausalLM.from_pretrained(order.model, dtype=getattr(torch, order.dtype)).eval()
        self.mirror = Mirror(json.loads(order.header), order.bank_rank, torch.device("cpu"))
        self.slots: dict[int, dict[str, Tensor]] = {}

    def _follow(self, records: bytes) -> None:
        self.mirror.follow(records)
        self.followed += len(records)

    def _place(self, step: int | None, adapters: Sequence[tuple[int, int, float]]) -> None:
        if step not in (None, self.mirror.step):
            raise RunError(f"asked for step {step} after {self.mirror.step} steps. Remedy: start again.")
        for slot, query, scale in adapters:
            found = self.mirror.adapters(query, scale)
            assert all(u.shape[1] <= self.order.rank for u, _ in found.values())
            self.slots[slot] = {
                f"{name}.weight": self.model.get_submodule(name).weight.detach() + u @ v.t()
                for name, (u, v) in found.items()
                if name != self.without
            }

    def _answer(self, questions: Sequence[Question], slots: Sequence[int]) -> list[Answer]:
        self.asked += len(questions)
        return [self._one(each, slot) for each, slot in zip(questions, slots, strict=True)]

    @torch.inference_mode()
    def _one(self, question: Question, slot: int) -> Answer:
        ids = torch.tensor([question.read])
        output: Any = functional_call(self.model, self.slots[slot], kwargs={"input_ids": ids})
        found = output.logits[0].log_softmax(-1)
        inner: list[float] = found[:-1].gather(1, ids[0, 1:, None])[:, 0].tolist()
        return Answer(inner if question.inner else [], {token: float(found[-1, token]) for token in question.follow})

    def says(self) -> str:
        return f"torch, adapters of rank {self.order.rank}"

    def close(self) -> None:
        self.closed = True


@final
class Between:
    """A watch that does something after every step."""

    def __init__(self, what: Callable[[], None]) -> None:
        self._what = what

    def say(self, text: str) -> None:
        """Nothing."""

    def header(self, info: Mapping[str, str]) -> None:
        """Nothing."""

    def step(self, step: int, steps: int, loss: float, seconds: float, extra: Mapping[str, float]) -> None:
        self._what()

    def eval(self, step: int, result: Mapping[str, float]) -> None:
        """Nothing."""
